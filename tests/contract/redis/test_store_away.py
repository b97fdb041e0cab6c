"""An app whose idempotency store goes away: nothing is handled, nothing is buried, and health tells it."""

import asyncio

import pytest
import redis.asyncio

from messaging import App, ConfigurationError, RetryPolicy, Topic, connect, fixed
from messaging_contracts import brokers

jobs = Topic("jobs", str)


def app_that_notes(handled):
    app = App("billing", retry=RetryPolicy(2, fixed(0.05)))
    app.subscribe(jobs, idempotent=True)(handled.append)
    return app


async def test_a_store_that_is_killed_costs_nothing_and_is_told(redis_url):
    handled = []
    with brokers.start("redis", own=True) as store:
        async with connect(redis_url + "?namespace=away", store=store.url) as bus:
            async with app_that_notes(handled).running(bus):
                await bus.publish(jobs, "before")
                await until(lambda: handled == ["before"])
                store.kill()
                await bus.publish(jobs, "while it is away")
                await until_status(bus, "red")
                told = str((await bus.health()).last_error)
                store.restart()
                await until(lambda: handled == ["before", "while it is away"])
                await until_status(bus, "green")
            letters = await bus.dead_letters(jobs, group="billing").count()
            await bus.delete_group(jobs, "billing")

    assert "idempotency store" in told
    assert letters == 0


async def test_a_store_that_refuses_for_good_ends_the_app_and_buries_nothing(redis_url):
    with brokers.start("redis", own=True) as store:
        async with connect(redis_url + "?namespace=refused", store=store.url) as bus:
            async with redis.asyncio.Redis.from_url(store.url) as client:
                await client.execute_command("ACL", "SETUSER", "default", "-@scripting")
            with pytest.raises(ConfigurationError, match="ACL user"):
                async with app_that_notes([]).running(bus):
                    await bus.publish(jobs, "x")
                    await asyncio.sleep(30)
            letters = await bus.dead_letters(jobs, group="billing").count()
            await bus.delete_group(jobs, "billing")

    assert letters == 0


async def until(condition):
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.05)


async def until_status(bus, status):
    async with asyncio.timeout(15):
        while (await bus.health()).status != status:
            await asyncio.sleep(0.05)
