"""A look at the broker that outlives the probe that began it."""

import asyncio
import gc

from messaging.adapter import AdapterContext
from messaging.clock import SystemClock
from messaging.errors import ConnectionFailed
from messaging_rabbitmq import RabbitMQAdapter
from tests.unit.loops import complaints


async def test_an_error_after_the_probe_has_gone_is_no_complaint_of_the_event_loop(monkeypatch):
    monkeypatch.setattr("messaging_rabbitmq.adapter.HEALTH_TIMEOUT", 0.01)
    adapter = RabbitMQAdapter.from_url("amqp://127.0.0.1:1", AdapterContext(clock=SystemClock()))
    fails = asyncio.Event()

    async def look():
        await fails.wait()
        raise ConnectionFailed("the broker has gone")

    monkeypatch.setattr(adapter, "_look", look)
    with complaints() as heard:
        health = await adapter.health()
        fails.set()
        await asyncio.sleep(0)
        await adapter.close()
        del adapter
        gc.collect()

    assert "did not answer" in (health.error or "")
    assert heard == []
