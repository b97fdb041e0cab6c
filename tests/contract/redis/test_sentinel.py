"""A master that a sentinel names."""

import asyncio
import signal
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


def started(folder, master):
    """A sentinel that has `master` under the name main, and its port."""
    port = free_port()
    file = folder / f"sentinel{port}.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {port_of(master)} 1\n"
    )
    program = native_program(Redis())
    return subprocess.Popen([program, file, "--sentinel"], stdout=subprocess.DEVNULL), port


def port_of(broker):
    return broker.url.rpartition(":")[2]


def name_master(port, broker):
    """As the sentinel would after a failover."""
    with Connection(f"redis://127.0.0.1:{port}", 5) as admin:
        admin.call("SENTINEL", "REMOVE", "main")
        admin.call("SENTINEL", "MONITOR", "main", "127.0.0.1", port_of(broker), 1)


@pytest.fixture
async def sentinel(own, tmp_path):
    broker, bench = await own()
    process, port = started(tmp_path, broker)
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
        name_master(port, new)
        results = [(await bench.publish(adapter, group.topic, 1))[0] for _ in range(3)]
    finally:
        old.resume()

    assert isinstance(results[0], PublishUncertain)
    assert all(isinstance(result, Receipt) for result in results[1:]), results


async def test_a_former_master_that_still_answers_gets_nothing_more_and_the_log_says_so(
    sentinel, own, caplog
):
    old, bench, port = sentinel
    new, _ = await own()
    adapter = await opened(bench, f"redis+sentinel://127.0.0.1:{port}/main")
    group = await bench.group(adapter)
    await asyncio.gather(*[bench.publish(adapter, group.topic, 1) for _ in range(5)])

    name_master(port, new)
    stream = adapter._topology.keys(group.topic).stream(0)
    with Connection(new.url, 5) as there:
        async with asyncio.timeout(10):
            while not there.call("EXISTS", stream):
                await bench.publish(adapter, group.topic, 1)
        before = str(there.call("XLEN", stream))
        await asyncio.gather(*[bench.publish(adapter, group.topic, 1) for _ in range(8)])

        assert there.call("XLEN", stream) == int(before) + 8
    assert f":{port_of(new)} in place of 127.0.0.1:{port_of(old)}" in caplog.text


async def test_a_sentinel_that_is_frozen_keeps_nobody_from_the_master(sentinel, tmp_path):
    broker, bench, port = sentinel
    other, frozen = started(tmp_path, broker)
    try:
        await opened(bench, f"redis+sentinel://127.0.0.1:{frozen}/main")
        other.send_signal(signal.SIGSTOP)

        await opened(bench, f"redis+sentinel://127.0.0.1:{frozen},127.0.0.1:{port}/main?connect_timeout=1", 0)
    finally:
        other.kill()
        other.wait(10)
