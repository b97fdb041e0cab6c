"""Members of several groups on one connection's worth of program, and who waits for whom."""

import asyncio

from messaging.adapter import TopicSpec
from messaging_kafka.consumer import KafkaConsumer
from tests.contract.kafka.support import QUICK, Bench, Recorder, ack, ids, owned, publish, receive

TOPIC = TopicSpec("orders", ordered=True, partitions=2)
SILENCE = 4
"""Seconds for which a group waits for a silent member: longer than the others' own sessions."""


async def test_who_waits_for_a_silent_member_loses_nothing(bench: Bench) -> None:
    silent, waiting = await bench.adapter(**{**QUICK, "session": SILENCE}), await bench.adapter(**QUICK)
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


def membership(consumer: KafkaConsumer):
    assert consumer._partitions is not None
    return consumer._partitions.membership


async def fall_silent(consumer: KafkaConsumer) -> None:
    task = membership(consumer)._task
    assert task is not None
    task.cancel()
    await asyncio.wait((task,))
