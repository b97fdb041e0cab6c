"""A master that a sentinel names."""

import asyncio
import subprocess
import time

import pytest

from messaging.errors import ConnectionFailed, PublishUncertain
from messaging.message import Receipt
from messaging_contracts.brokers.find import native_program
from messaging_contracts.brokers.process import free_port
from messaging_contracts.brokers.redis import Redis
from messaging_contracts.brokers.resp import Connection
from tests.contract.redis.stores import keeps_keys


@pytest.fixture
async def sentinel(own, tmp_path):
    broker, bench = await own()
    port = free_port()
    file = tmp_path / "sentinel.conf"
    master = broker.url.rpartition(":")[2]
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {master} 1\n"
    )
    program = native_program(Redis())
    process = subprocess.Popen([program, file, "--sentinel"], stdout=subprocess.DEVNULL)
    yield broker, bench, port
    process.terminate()
    process.wait(10)


async def opened(bench, url, within=10.0):
    until = time.monotonic() + within
    while True:
        try:
            return await bench.adapter(url)
        except ConnectionFailed:
            assert time.monotonic() < until, "the sentinel does not serve"
            await asyncio.sleep(0.05)


async def test_the_master_is_asked_for_by_name_and_an_unknown_name_is_a_failed_connection(sentinel):
    _, bench, port = sentinel
    adapter = await opened(bench, f"redis+sentinel://127.0.0.1:{port}/main")
    group = await bench.group(adapter)

    results = await bench.publish(adapter, group.topic, 10)
    got = await bench.drain(bench.consumer(adapter, group), 10)

    assert all(type(result) is Receipt for result in results)
    assert len(got) == 10
    await keeps_keys(f"redis+sentinel://127.0.0.1:{port}/main")
    with pytest.raises(ConnectionFailed, match="other"):
        await bench.made(f"redis+sentinel://127.0.0.1:{port}/other").open()


async def test_after_a_failover_one_publish_is_uncertain_however_many_connections_were_open(sentinel, own):
    old, bench, port = sentinel
    new, _ = await own()
    adapter = await opened(bench, f"redis+sentinel://127.0.0.1:{port}/main?socket_timeout=1.5")
    group = await bench.group(adapter)
    await asyncio.gather(*[bench.publish(adapter, group.topic, 1) for _ in range(5)])

    old.pause()
    try:
        with Connection(f"redis://127.0.0.1:{port}", 5) as admin:
            admin.call("SENTINEL", "REMOVE", "main")
            admin.call("SENTINEL", "MONITOR", "main", "127.0.0.1", new.url.rpartition(":")[2], 1)
        results = [(await bench.publish(adapter, group.topic, 1))[0] for _ in range(3)]
    finally:
        old.resume()

    assert isinstance(results[0], PublishUncertain)
    assert all(isinstance(result, Receipt) for result in results[1:]), results
