import asyncio

import pytest

from messaging.together import Together


class Source:
    """What is fetched when the gate is open."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.fetched = 0
        self.errors = []

    async def fetch(self):
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop()
        self.fetched += 1
        return f"value {self.fetched}"


@pytest.fixture
async def source():
    return Source()


@pytest.fixture
def together():
    return Together()


async def started(together, source, count):
    order = []

    async def call(number):
        found = await together.get(source.fetch)
        order.append(number)
        return found

    tasks = [asyncio.create_task(call(number)) for number in range(count)]
    await asyncio.sleep(0)
    return tasks, order, call


async def test_those_who_call_together_share_what_one_fetches(together, source):
    tasks, order, _ = await started(together, source, 5)
    source.gate.set()

    assert await asyncio.gather(*tasks) == ["value 1"] * 5
    assert order == [0, 1, 2, 3, 4]


async def test_the_next_to_call_fetches_anew(together, source):
    source.gate.set()

    assert [await together.get(source.fetch) for _ in range(2)] == ["value 1", "value 2"]


async def test_who_comes_while_others_are_about_to_go_on_does_not_overtake_them(together, source):
    tasks, order, call = await started(together, source, 3)
    tasks[0].add_done_callback(lambda _: tasks.append(asyncio.create_task(call(3))))
    source.gate.set()
    while len(order) < 1:
        await asyncio.sleep(0)
    await call(4)

    await asyncio.gather(*tasks)
    assert order.index(4) > order.index(2)
    assert order[:3] == [0, 1, 2]


async def test_where_it_fails_nobody_who_waits_goes_on_and_the_next_to_call_fetches(together, source):
    source.errors = [ValueError("refused")]
    tasks, _, _ = await started(together, source, 3)
    source.gate.set()

    found = await asyncio.gather(*tasks, return_exceptions=True)

    assert [str(error) for error in found] == ["refused"] * 3
    assert await together.get(source.fetch) == "value 1"


async def test_who_comes_before_those_who_waited_are_told_that_it_failed_does_not_go_past_them(
    together, source
):
    late = []

    async def fetch():
        await source.gate.wait()
        late.append(asyncio.create_task(together.get(source.fetch)))
        raise ValueError("refused")

    first = asyncio.create_task(together.get(fetch))
    await asyncio.sleep(0)
    tasks, _, _ = await started(together, source, 2)
    source.gate.set()

    await asyncio.wait((first, *tasks))
    found = await asyncio.gather(first, *tasks, *late, return_exceptions=True)

    assert [str(error) for error in found] == ["refused"] * 4
    assert await together.get(source.fetch) == "value 1"


async def test_who_is_cancelled_as_it_fails_leaves_no_error_unread(together, source):
    source.errors = [ValueError("refused")]
    tasks, _, _ = await started(together, source, 3)
    tasks[0].add_done_callback(lambda _: tasks[1].cancel())
    source.gate.set()

    await asyncio.gather(*tasks, return_exceptions=True)

    assert await together.get(source.fetch) == "value 1"


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("ticks", [0, 1, 2])
async def test_whoever_is_cancelled_leaves_nobody_waiting(together, source, cancelled, ticks):
    tasks, _, _ = await started(together, source, 4)
    for number in cancelled:
        tasks[number].cancel()
        for _ in range(ticks):
            await asyncio.sleep(0)
    source.gate.set()

    async with asyncio.timeout(5):
        found = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(found[number], asyncio.CancelledError) for number in cancelled)
    assert all(found[number] == "value 1" for number in range(4) if number not in cancelled)
    assert await together.get(source.fetch) == "value 2"
