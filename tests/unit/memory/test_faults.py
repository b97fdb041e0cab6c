import asyncio
from dataclasses import replace

import pytest

from messaging.adapter import AdapterContext, GroupSpec, SettleError, Settlement, Topology
from messaging.errors import ConfigurationError, ConnectionFailed, LeaseLost
from messaging.message import Ack, Retry
from messaging.testing import VirtualClock
from messaging_memory import MemoryAdapter
from messaging_memory.broker import Broker


async def test_a_lost_connection_fails_calls_and_gives_back_uncounted(world, owner):
    await world.declare()
    listening = owner()
    consumer, idle = world.consumer(listening), world.consumer()
    await world.publish(world.outgoing(id="a"))
    (delivery,) = await consumer.receive(1, 0)
    waiting = asyncio.create_task(idle.receive(1, 60))
    await world.clock.settle()

    world.broker.disconnect()

    assert listening.lost == ["a"]
    with pytest.raises(ConnectionFailed):
        await waiting
    for _ in range(2):
        with pytest.raises(ConnectionFailed):
            await consumer.receive(1, 0)
    with pytest.raises(ConnectionFailed):
        await world.publish(world.outgoing())
    with pytest.raises(ConnectionFailed):
        await consumer.isolate(delivery)
    (result,) = await consumer.settle([Settlement(delivery, Ack())])
    assert isinstance(result, SettleError)
    assert isinstance(result.error, ConnectionFailed)
    assert await consumer.extend([delivery], 30) == [False]
    assert not (await world.adapter.health()).connected

    world.broker.reconnect()
    (again,) = await consumer.receive(1, 0)
    assert (again.message.id, again.deliveries, again.returns) == ("a", 2, 0)
    (result,) = await consumer.settle([Settlement(delivery, Ack())])
    assert isinstance(result.error, LeaseLost)


async def test_a_restart_is_told_once_and_keeps_what_is_stored(world):
    await world.declare()
    consumer = world.consumer()
    await world.publish(world.outgoing(id="a"), world.outgoing(id="b"))
    (delivery,) = await consumer.receive(1, 0)
    await consumer.settle([Settlement(delivery, Retry(), after=10, failure="{}")])

    world.broker.restart()

    with pytest.raises(ConnectionFailed):
        await consumer.receive(1, 0)
    (b,) = await consumer.receive(10, 0)
    await consumer.settle([Settlement(b, Ack())])
    await world.clock.advance(10)
    (a,) = await consumer.receive(10, 0)
    assert (b.message.id, a.message.id, a.attempt) == ("b", "a", 2)


async def test_a_crash_is_told_to_nobody_and_counted(world, owner):
    await world.declare(ordered=True)
    listening = owner()
    crashing = await world.another()
    first, second = world.consumer(listening, adapter=crashing), world.consumer()
    await world.publish(world.outgoing(id="a", key="k"))
    (delivery,) = await first.receive(1, 0)
    waiting = asyncio.create_task(second.receive(1, 60))
    await world.clock.settle()

    crashing.crash()

    (again,) = await waiting
    assert (again.message.id, again.returns, again.fence > delivery.fence) == ("a", 1, True)
    assert listening.lost == []
    with pytest.raises(ConnectionFailed):
        await first.receive(1, 0)
    with pytest.raises(ConnectionFailed, match="crashed"):
        await first.receive(1, 0)


async def test_a_named_broker_is_shared_and_gone_with_its_last_adapter():
    clock = VirtualClock()

    async def opened():
        adapter = MemoryAdapter.from_url("memory://shared-name", AdapterContext(clock=clock))
        await adapter.open()
        return adapter

    first, second = await opened(), await opened()
    broker = first.native
    assert second.native is broker
    await first.close()
    third = await opened()
    assert third.native is broker
    await second.close()
    await third.close()

    last = await opened()
    assert last.native is not broker
    await last.close()
    private = MemoryAdapter.from_url("memory://", AdapterContext(clock=clock))
    assert private.native is not last.native


async def test_a_broker_in_use_on_another_event_loop_is_refused():
    broker = Broker("loops", clock=VirtualClock())
    adapter = MemoryAdapter(AdapterContext(clock=broker.clock), broker=broker)
    await adapter.open()

    async def elsewhere():
        await MemoryAdapter(AdapterContext(clock=broker.clock), broker=broker).open()

    with pytest.raises(ConfigurationError, match="event loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    await adapter.close()


async def test_what_is_delayed_waits_on_while_nobody_is_connected(world):
    for ordered in (False, True):
        world.topic = replace(world.topic, name=f"orders-{ordered}", ordered=ordered)
        world.group = GroupSpec(world.topic, "billing", ordered=ordered)
        adapter = await world.another()
        await adapter.declare(Topology([world.topic], [world.group]))
        consumer = world.consumer(adapter=adapter)
        await adapter.publish([world.outgoing(id="a", key="k")])
        (delivery,) = await consumer.receive(1, 0)
        await consumer.settle([Settlement(delivery, Retry(), after=10, failure="{}")])

        for open_adapter in world.adapters:
            await open_adapter.close()
        await world.clock.advance(5)
        await world.adapter.open()
        waiting = asyncio.create_task(world.consumer().receive(1, 60))
        await world.clock.advance(4.9)
        assert not waiting.done()
        await world.clock.advance(0.1)

        assert [delivery.attempt for delivery in waiting.result()] == [2]
