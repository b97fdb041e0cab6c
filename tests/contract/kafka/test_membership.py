"""Members of several groups on one connection's worth of program, and who waits for whom."""

import asyncio

from messaging.adapter import DONE, TopicSpec
from messaging.message import Ack
from messaging_kafka import library
from messaging_kafka.consumer import KafkaConsumer
from tests.contract.bench import Recorder, ack, cut_off, ids, publish, receive, settle
from tests.contract.kafka.support import QUICK, Bench, membership, owned

TOPIC = TopicSpec("orders", ordered=True, partitions=2)
SILENCE = 5
"""Seconds for which a group waits for a silent member."""
SHORTER = {**QUICK, "session": SILENCE / 2}
"""Options of members whose own sessions would end meanwhile."""


async def test_who_waits_for_a_silent_member_loses_nothing(bench: Bench) -> None:
    silent, waiting = await bench.adapter(**{**QUICK, "session": SILENCE}), await bench.adapter(**SHORTER)
    groups = [await bench.group(silent, TOPIC, name) for name in ("billing", "search")]
    ghost = bench.consumer(silent, groups[0])
    await owned(ghost, 2)
    ownership = Recorder()
    billing, search = [bench.consumer(waiting, group, ownership) for group in groups]
    await asyncio.gather(owned(billing, 1), owned(search, 2), owned(ghost, 1))
    for partition in range(2):
        await publish(silent, TOPIC, f"{partition}", partition=partition)
    held, others = await receive(billing, 1), await receive(search, 2)

    await fall_silent(ghost)
    joined = membership(billing).generation
    membership(billing).rejoin()
    async with asyncio.timeout(3 * SILENCE):
        while membership(billing).generation == joined:
            await billing.receive(1, 0.05, paused=range(2))

    assert ownership.lost == [], f"lost meanwhile: {ids(ownership.lost)}"
    await ack(billing, held)
    await ack(search, others)


async def test_two_members_of_one_program_share_a_group(bench: Bench) -> None:
    adapter = await bench.adapter()
    group = await bench.group(adapter, TOPIC)
    first, second = bench.consumer(adapter, group), bench.consumer(adapter, group)

    await asyncio.gather(owned(first, 1), owned(second, 1))

    for partition in range(2):
        await publish(adapter, TOPIC, f"{partition}", partition=partition)
    await ack(first, await receive(first, 1))
    await ack(second, await receive(second, 1))


async def test_a_commit_between_a_join_and_its_share_is_made_again(bench: Bench) -> None:
    first, second = await two_members(bench)
    held = await receive(first, 2)
    between = hold_share(first)
    joining = asyncio.create_task(owned(second, 1))
    await between.reached.wait()

    settling = asyncio.create_task(settle(first, held, Ack()))
    await between.refused.wait()
    between.go.set()

    assert [result is DONE for result in await settling] == [True, True]
    await joining


async def test_who_leaves_between_a_join_and_its_share_brings_no_message_nearer_to_the_crash_guard(
    bench: Bench,
) -> None:
    first, second = await two_members(bench)
    await receive(first, 2)
    between = hold_share(first)
    joining = asyncio.create_task(owned(second))
    await between.reached.wait()

    closing = asyncio.create_task(first.close())
    await between.refused.wait()
    between.go.set()
    await closing

    await joining
    assert [one.returns for one in await receive(second, 2)] == [0, 0]


async def test_a_member_cancelled_while_it_joins_holds_up_no_other(bench: Bench) -> None:
    adapter = await bench.adapter(session=30)
    group = await bench.group(adapter, TOPIC)
    for turns in range(0, 600, 15):
        await cut_off(bench.consumer(adapter, group), turns)

    assert await owned(bench.consumer(adapter, group), 2, within=10)


async def two_members(bench: Bench) -> tuple[KafkaConsumer, KafkaConsumer]:
    """The first owns two partitions with a message each; the second has not joined."""
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, TOPIC)
    first, second = bench.consumer(adapter, group), bench.consumer(other, group)
    await owned(first, 2)
    for partition in range(2):
        await publish(adapter, TOPIC, f"{partition}", partition=partition)
    return first, second


class Between:
    """A member that has joined a new generation and was dealt no share of it yet."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.refused = asyncio.Event()
        """A commit of it was refused for that."""
        self.go = asyncio.Event()


def hold_share(consumer: KafkaConsumer) -> Between:
    """Keep what asks for its next share until `go`."""
    between, member = Between(), membership(consumer)
    ask, commit = member._to_group, member._brokers.commit

    async def asked(request, within):
        if isinstance(request, library.SyncGroup) and not between.go.is_set():
            between.reached.set()
            await between.go.wait()
        return await ask(request, within)

    async def committed(*args, **more):
        try:
            await commit(*args, **more)
        except library.Errors.RebalanceInProgressError:
            between.refused.set()
            raise

    member._to_group, member._brokers.commit = asked, committed
    return between


async def fall_silent(consumer: KafkaConsumer) -> None:
    task = membership(consumer)._task
    assert task is not None
    task.cancel()
    await asyncio.wait((task,))


async def test_a_close_that_is_cut_off_at_any_step_keeps_no_partition_from_others(bench: Bench) -> None:
    adapter, other = await bench.adapter(**QUICK), await bench.adapter(**QUICK)
    group = await bench.group(adapter, TOPIC)
    for steps in range(1, 40, 3):
        leaving = bench.consumer(adapter, group)
        await owned(leaving, 2)
        closing = asyncio.create_task(leaving.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing,))

        taking_over = bench.consumer(other, group)
        await owned(taking_over, 2, within=5)
        await taking_over.close()
