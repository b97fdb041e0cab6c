"""A server that is out of memory takes no publishes; what empties it has to work."""

import asyncio
from typing import Any

import pytest

from messaging import App, Topic, connect
from messaging.adapter import Done, GroupSpec, TopicSpec, Topology
from messaging.clock import SystemClock
from messaging.errors import ConnectionFailed, PublishError
from messaging.store import Completed
from messaging_redis import RedisStore
from tests.contract.bench import healthy


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_program_that_starts_on_a_full_server_empties_it(own, ordered):
    _, bench = await own()
    orders = Topic("orders", str, key=lambda text: text[:1], ordered=ordered, partitions=2)
    handled: asyncio.Queue[str] = asyncio.Queue()
    url = f"{bench.url}?namespace={bench.namespace}&history=0&trim_interval=0.1&poll=0.1"
    async with connect(url) as bus:
        await bus.declare(orders, groups=["billing"])
        await bus.publish_many(orders, [str(n) + "x" * 100_000 for n in range(20)])
        used = (await bus.native.info("memory"))["used_memory"]
        await bus.native.config_set("maxmemory", used - 500_000)
        with pytest.raises(PublishError, match="OOM"):
            await bus.publish(orders, "one more")

    app = App("billing")

    @app.subscribe(orders)
    async def handle(text: str) -> None:
        handled.put_nowait(text)

    async with connect(url) as bus, app.running(bus), asyncio.timeout(20):
        for _ in range(20):
            await handled.get()
        while True:
            try:
                await bus.publish(orders, "one more")
            except PublishError:
                await asyncio.sleep(0.05)
            else:
                break
        assert await handled.get() == "one more"


async def test_health_tells_of_a_full_server_where_nothing_is_published_until_it_has_room_again(own):
    _, bench = await own()
    adapter = await bench.adapter()
    await bench.group(adapter)
    told = [await healthy(adapter)]
    for most in (1, 0):
        await adapter.native.config_set("maxmemory", most)
        told.append(await healthy(adapter))

    assert [one.refusing is None for one in told] == [True, False, True]
    assert "OOM" in (told[1].refusing or "")


async def test_health_tells_of_the_node_of_a_cluster_that_is_full_where_it_has_a_topic(cluster):
    nodes, bench = cluster
    adapter = await bench.adapter(nodes.url.replace("redis://", "redis+cluster://"))
    group = await bench.group(adapter)
    native = adapter.native
    theirs = native.get_node_from_key(adapter._topology.keys(group.topic).record)
    others = [node for node in native.get_primaries() if node != theirs]
    for node in others:
        await native.config_set("maxmemory", 1, target_nodes=node)
    before = await healthy(adapter)
    await native.config_set("maxmemory", 1, target_nodes=theirs)
    after = await healthy(adapter)

    assert (before.refusing, "OOM" in (after.refusing or "")) == (None, True)


async def test_an_adopted_group_is_emptied_as_well(own):
    _, bench = await own()
    adapter = await bench.adapter()
    await adapter.native.xgroup_create("theirs", "group", id="0", mkstream=True)
    await adapter.native.xadd("theirs", {"body": b"body 0"})
    topic = TopicSpec("orders", partitions=1, native="theirs")
    group = GroupSpec(topic, "billing", native="group")
    await adapter.native.config_set("maxmemory", 1)

    await adapter.declare(Topology((topic,), (group,)))
    consumer = bench.consumer(adapter, group)
    (delivery,) = await bench.receive(consumer, 1)

    assert delivery.message.body == b"body 0"
    assert isinstance((await bench.settle(consumer, [delivery]))[0], Done)


async def test_what_was_done_is_known_as_done_to_a_store_that_is_full(own):
    _, bench = await own()
    adapter = await bench.adapter()
    store: Any = RedisStore.from_url(bench.url, clock=SystemClock())
    await store.open()
    done, failed = [await store.begin(key, digest="d", lease=30) for key in ("done", "failed")]
    await adapter.native.config_set("maxmemory", 1)

    assert await store.extend("done", done.fence, lease=60)
    assert await store.complete("done", done.fence, result=b"reply", ttl=60)
    await store.clear("failed", failed.fence)
    with pytest.raises(ConnectionFailed, match="OOM"):
        await store.begin("another", digest="d", lease=30)

    assert await store.begin("done", digest="d", lease=30) == Completed(b"reply")
    await store.close()
