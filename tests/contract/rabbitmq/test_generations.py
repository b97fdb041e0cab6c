"""What becomes of one who is cancelled in the moment in which the broker closes his channel."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from messaging.adapter import TopicSpec
from tests.contract.rabbitmq.support import Bench

STEPS = range(7)
"""Of the event loop, between the frame that closes the channel and the cancellation."""


@pytest.fixture(params=STEPS)
def cancelled_in_between(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Runs something, which is cancelled so many steps after the broker has closed a channel of it."""
    hand_on, cancelling = Channel._on_close_frame, []

    async def run(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)

        async def cancel() -> None:
            for _ in range(request.param):
                await asyncio.sleep(0)
            task.cancel()

        async def closed(self: Channel, frame: Any) -> None:
            cancelling.append(asyncio.create_task(cancel()))
            await hand_on(self, frame)

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_on_close_frame", closed)
            await asyncio.wait([task])
            await asyncio.gather(*cancelling)
        return task

    return run


async def test_a_look_for_generations_leaves_the_connection_whole(bench: Bench, cancelled_in_between):
    adapter = await bench.adapter()
    topic = TopicSpec("orders", partitions=2)
    await bench.group(adapter, topic)
    connection = adapter.native

    looking = await cancelled_in_between(adapter.generations(topic))

    assert looking.cancelled()
    assert await adapter.generations(topic) == [topic]
    assert adapter.native is connection


async def test_the_cancellation_is_not_lost(bench: Bench, cancelled_in_between):
    adapter = await bench.adapter()

    async def look() -> None:
        async with adapter._session.consuming.throwaway("looking") as channel:
            with contextlib.suppress(ChannelNotFoundEntity):
                await channel.queue_declare("absent", passive=True)

    looking = await cancelled_in_between(look())

    assert looking.cancelled() or not looking.cancelling()  # it may have ended before
