"""Delivery tags are acknowledged in any order and number: each once, and never one that is not meant."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging_rabbitmq.intake import Intake
from tests.unit.scripted import raw


class Channel:
    """Settles as a broker does; a tag that is not outstanding would close a real channel."""

    def __init__(self):
        self.outstanding: list[int] = []
        self.acknowledged: list[int] = []
        self.given_back: list[int] = []
        self.frames = 0

    def settle(self, tags, into):
        assert tags, "a frame that settles nothing closes the channel"
        for tag in tags:
            self.outstanding.remove(tag)
        into += tags

    async def basic_ack(self, tag, multiple=False, wait=True):
        assert tag in self.outstanding, "PRECONDITION_FAILED: unknown delivery tag"
        self.frames += 1
        self.settle([one for one in self.outstanding if one <= tag] if multiple else [tag], self.acknowledged)

    async def basic_nack(self, tag, requeue=True, wait=True):
        assert tag in self.outstanding, "PRECONDITION_FAILED: unknown delivery tag"
        self.settle([tag], self.given_back)


class Queue:
    def __init__(self):
        self.channel = Channel()
        self.intake = Intake("orders", arrived=lambda: None, lost=lambda intake, reason: None)
        self.intake._channel = self.channel  # type: ignore[assignment]
        self.last = 0

    async def arrive(self, handed):
        self.last += 1
        self.channel.outstanding.append(self.last)
        self.intake._put(SimpleNamespace(delivery_tag=self.last))  # type: ignore[arg-type]
        if handed:
            self.intake.hand_out(raw(str(self.last)), self.last)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.booleans()),
        st.tuples(st.just("acknowledge"), st.lists(st.integers(1, 20), max_size=12)),
        st.tuples(st.just("give_back"), st.integers(1, 20)),
    ),
    max_size=40,
)


@given(steps)
def test_exactly_what_is_meant_is_acknowledged_and_each_once(steps):
    async def play():
        queue, expected, back = Queue(), [], []
        for step, argument in steps:
            before = list(queue.channel.outstanding)
            if step == "arrive":
                await queue.arrive(argument)
            elif step == "acknowledge":
                wanted = [tag for tag in before if tag in argument]
                await queue.intake.acknowledge(argument)
                expected += wanted
            elif argument in before:
                await queue.intake.give_back(argument)
                back.append(argument)
            else:
                await queue.intake.give_back(argument)  # settled before: nothing is sent
            assert sorted(queue.channel.acknowledged) == sorted(expected)
            assert queue.channel.given_back == back
            assert list(queue.intake._outstanding) == queue.channel.outstanding

    asyncio.run(play())


@pytest.mark.parametrize("count", [1, 2, 500])
async def test_the_oldest_without_a_gap_cost_one_frame(count):
    queue = Queue()
    for _ in range(count + 5):
        await queue.arrive(handed=True)

    await queue.intake.acknowledge(range(1, count + 1))

    assert queue.channel.frames == 1
    assert queue.channel.acknowledged == list(range(1, count + 1))
