"""An operator changes a topic by the command, in a process of its own, on each broker that processes share."""

from __future__ import annotations

import asyncio
import re
import secrets

import pytest

from messaging import Ack, Settings, Topic, connect

ORDERS = Topic("orders", str, key=lambda _: "ann", ordered=True, partitions=2)


@pytest.mark.parametrize(
    "broker_url",
    [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("redis", "rabbitmq", "kafka", "sqs")],
    indirect=True,
)
def test_a_topic_gets_more_partitions_by_command(python, broker_url, tmp_path):
    namespace = secrets.token_hex(6)
    change = ["--topic", "orders", "--partitions", "5", "--grace", "0.1"]
    call = ["-m", "messaging", "generations", "begin", "--url", broker_url, "--namespace", namespace, *change]

    async def publish_and_begin():
        async with connect(broker_url, namespace=namespace) as bus:
            await bus.declare(ORDERS, groups=["billing"])
            await bus.publish(ORDERS, "before")
        return await asyncio.to_thread(python, call, tmp_path)

    async def consume():
        async with connect(Settings(url=broker_url, namespace=namespace, generation_interval=0.1)) as bus:
            try:
                await bus.publish(ORDERS, "after")
                async with bus.consume(ORDERS, group="billing") as pull:
                    handled = []
                    for _ in range(2):
                        delivery = await anext(pull)
                        handled.append(delivery.payload)
                        await pull.settle(delivery, Ack())
                    return handled
            finally:
                await bus.delete_group(ORDERS, group="billing")

    run = asyncio.run(publish_and_begin())

    assert run.returncode == 0, run.stdout + run.stderr
    assert re.fullmatch(r"where order is kept this takes 0\.1 s, .*\n", run.stderr)
    assert "generation 1: 2 partitions, ordered=True\n" in run.stdout
    assert "generation 2: 5 partitions, ordered=True, written\n" in run.stdout
    assert asyncio.run(consume()) == ["before", "after"]
