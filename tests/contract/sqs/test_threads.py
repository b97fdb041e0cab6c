"""Calls that block run in threads of a bounded number, and receives never keep the others waiting."""

import asyncio
import threading

import boto3
import pytest

from messaging.adapter import TopicSpec
from messaging.errors import Closed, ConnectionFailed
from messaging.message import Receipt
from messaging_sqs.threads import Threads
from tests.contract.bench import outgoing, publish
from tests.contract.sqs.support import Bench


async def test_no_more_calls_run_at_once_than_there_are_threads():
    threads, gate, running = Threads("test", 3), threading.Event(), threading.Semaphore(0)

    def call() -> None:
        running.release()
        gate.wait(5)

    calls = [asyncio.create_task(threads.run(call)) for _ in range(10)]
    for _ in range(3):
        assert await asyncio.to_thread(running.acquire, timeout=5)
    assert not running.acquire(blocking=False)
    gate.set()
    await asyncio.gather(*calls)
    threads.close()
    with pytest.raises(Closed):
        await threads.run(call)


async def test_a_cancelled_call_ends_by_itself_and_holds_up_no_later_one():
    threads, gate, ended = Threads("test", 1), threading.Event(), threading.Event()

    def call() -> None:
        gate.wait(5)
        ended.set()

    waiting = asyncio.create_task(threads.run(call))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    gate.set()
    assert await threads.run(lambda: "later") == "later"
    assert ended.is_set()
    threads.close()


async def test_threads_that_could_not_be_started_for_a_moment_are_started_later(monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, together = Threads("test", 2), threading.Barrier(2)
    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ConnectionFailed, match="can't start"):
            await threads.run(lambda: None)
    async with asyncio.timeout(5):
        assert await threads.run(lambda: "one") == "one"
        with monkeypatch.context() as exhausted:
            exhausted.setattr(threading.Thread, "start", refuse)
            await asyncio.gather(*(threads.run(lambda: None) for _ in range(3)))
        await asyncio.gather(*(threads.run(lambda: together.wait(5)) for _ in range(2)))
    threads.close()


async def test_receives_that_wait_keep_no_publish_waiting(bench: Bench):
    adapter = await bench.adapter(threads=1, pollers=16, poll_wait=5)
    group = await bench.group(adapter)
    consumers = [bench.consumer(adapter, group) for _ in range(4)]
    waiting = [asyncio.create_task(consumer.receive(1, 5.0)) for consumer in consumers]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(4):
        await publish(adapter, group.topic, "one")
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for receive in waiting:
        receive.cancel()
    await asyncio.wait(waiting)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("fanout", ["sns", "client"])
async def test_a_topic_whose_requests_hang_keeps_no_other_waiting(bench: Bench, fanout, ordered):
    loop, hung, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hang(request, **_: object) -> None:
        if b"hanging" in request.body:
            loop.call_soon_threadsafe(hung.set)
            go_on.wait(30)

    session = boto3.Session(region_name="us-east-1")
    for operation in ("sns.PublishBatch", "sqs.SendMessageBatch"):
        session.events.register(f"before-send.{operation}", hang)
    adapter = await bench.adapter(session=session, fanout=fanout)
    hanging, well = [
        (await bench.group(adapter, TopicSpec(name, ordered=ordered))).topic for name in ("hanging", "well")
    ]
    many = [outgoing(hanging, f"{number}", key=f"{number}") for number in range(256)]
    waiting = asyncio.create_task(adapter.publish(many))
    try:
        async with asyncio.timeout(10):
            await hung.wait()
            await publish(adapter, well, "one", key="one")
    finally:
        go_on.set()
    assert {type(result) for result in await waiting} == {Receipt}
