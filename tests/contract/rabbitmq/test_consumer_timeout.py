"""Handlers that take longer than the broker's `consumer_timeout`."""

import asyncio
from collections.abc import Iterator

import pytest

from messaging import App, RetryPolicy, Topic, connect
from messaging_contracts.brokers import start

TIMEOUT = 1.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start("rabbitmq", own=True, config={"consumer_timeout": f"{TIMEOUT * 1000:.0f}"}) as broker:
        yield broker.url


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
async def test_one_that_always_does_becomes_a_dead_letter_that_says_so(url: str, ordered: bool) -> None:
    """The broker cuts it off uncounted; once it has done so, we end it before, and that is a failure like any other."""
    orders = Topic(f"orders-{ordered}", str, key=lambda _: "ann", ordered=ordered)
    app, begun = App("slow"), list[str]()
    behind = asyncio.Event()

    @app.subscribe(orders, retry=RetryPolicy(attempts=2))
    async def handle(order: str) -> None:
        begun.append(order)
        if order == "endless":
            await asyncio.Event().wait()
        behind.set()

    async with connect(url) as bus:
        await bus.declare(app)
        await bus.publish_many(orders, ["endless", "behind it"])
        letters = bus.dead_letters(orders, group="slow")
        async with app.running(bus), asyncio.timeout(30):
            await behind.wait()
            while not await letters.count():
                await asyncio.sleep(0.05)
        (letter,) = [one async for one in letters.browse()]

    assert (letter.cause, letter.attempts) == ("max_attempts", 2)
    assert letter.error is not None and letter.error.type == "TimeoutError"
    assert f"takes back what is not settled within {TIMEOUT:g} s" in letter.error.message
    # Two attempts; beside them it was cut off once, and once more where the second begins while it is held.
    assert begun.count("endless") <= (4 if ordered else 3)
