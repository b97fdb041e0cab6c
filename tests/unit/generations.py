"""A topic that is changed, to the end or not, and an app with a group on it."""

import asyncio

import pytest

from messaging import App, Topic

orders = Topic("orders", str, key=lambda text: text, ordered=True, partitions=2)


def collecting():
    """An app with a group on the topic with order, and what that group has handled."""
    app, seen = App("a"), []

    @app.subscribe(orders)
    async def handle(order: str) -> None:
        seen.append(order)

    return app, seen


async def change(bus, clock, topic, **how):
    changing = asyncio.create_task(bus.begin_generation(topic, **how))
    while not changing.done():
        await clock.advance(1)
    return changing.result()


async def interrupted(bus, clock, topic, **how):
    changing = asyncio.create_task(bus.begin_generation(topic, **how))
    await clock.advance(1)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
