"""What a program is told where nobody declared what it needs: what to do, and nothing that it did not ask for."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from messaging import Endpoint, NoGroup, Topic, TopicNotFound, connect

ON_EACH_BROKER = pytest.mark.parametrize(
    "broker_url",
    [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("redis", "rabbitmq", "kafka", "sqs")],
    indirect=True,
)


@ON_EACH_BROKER
def test_a_request_that_nobody_can_answer_says_how_somebody_could(broker_url):
    async def ask():
        async with connect(broker_url, namespace=secrets.token_hex(6)) as bus:
            with pytest.raises(NoGroup) as refused:
                await bus.request(Endpoint("prices", str, int), "mug", timeout=30)
        return str(refused.value)

    told = asyncio.run(ask())

    assert "no group subscribes to topic prices. Run the app that handles it, or declare its group." in told


@ON_EACH_BROKER
def test_the_dead_letters_of_a_group_that_nobody_declared_say_so_without_a_setting_that_nobody_made(
    broker_url,
):
    async def look():
        async with connect(broker_url, namespace=secrets.token_hex(6)) as bus:
            with pytest.raises(TopicNotFound) as refused:
                await bus.dead_letters(Topic("orders", str), group="billing").count()
        return str(refused.value)

    told = asyncio.run(look())

    assert "orders" in told
    assert "topology is 'verify'" not in told
