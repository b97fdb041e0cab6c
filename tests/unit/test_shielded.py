"""Work that goes on without whoever waited for it."""

import asyncio
import gc

import pytest

from messaging.shielded import Underway, shielded
from tests.unit.loops import complaints


async def test_whoever_waits_has_the_result_or_the_error():
    async def work(error=None):
        if error is not None:
            raise error
        return 7

    assert await shielded(asyncio.create_task(work())) == 7
    with pytest.raises(LookupError):
        await shielded(asyncio.create_task(work(LookupError())))


async def test_it_goes_on_when_the_caller_is_cancelled_and_its_error_is_no_complaint():
    ended = []
    fails = asyncio.Event()

    async def work():
        await fails.wait()
        ended.append(True)
        raise LookupError

    with complaints() as heard:
        waiting = asyncio.create_task(shielded(asyncio.create_task(work())))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        fails.set()
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()

    assert waiting.cancelled()
    assert ended == [True]
    assert heard == []


async def test_work_under_way_goes_on_without_who_asked_for_it():
    underway, go_on, done = Underway(), asyncio.Event(), []

    async def work():
        await go_on.wait()
        done.append("done")

    asking = asyncio.create_task(shielded(underway.start(work(), name="work")))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait((asking,))
    asyncio.get_running_loop().call_soon(go_on.set)
    await underway.end(5)

    assert asking.cancelled()
    assert done == ["done"]


async def test_what_is_under_way_for_too_long_is_cancelled_at_the_end():
    underway = Underway()
    endless = underway.start(asyncio.Event().wait(), name="endless")

    await underway.end(0)

    assert endless.cancelled()
