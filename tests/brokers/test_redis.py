import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from messaging_contracts import brokers
from messaging_contracts.brokers.process import NativeBroker
from messaging_contracts.brokers.resp import Connection, ReplyError
from tests.brokers.processes import left_behind, wait_until_nothing_is_left

pytestmark = pytest.mark.redis


def own(**options: str) -> NativeBroker:
    broker = brokers.start("redis", own=True, **options)  # type: ignore[arg-type]
    assert isinstance(broker, NativeBroker)
    return broker


@pytest.fixture
def redis() -> Iterator[NativeBroker]:
    with own() as broker:
        yield broker


def call(url: str, *words: str | int) -> object:
    with Connection(url, timeout=10) as connection:
        return connection.call(*words)


def test_the_url_answers_and_the_version_is_the_servers(redis: NativeBroker) -> None:
    assert call(redis.url, "PING") == "PONG"
    assert f"redis_version:{redis.version}" in str(call(redis.url, "INFO"))
    assert f"process_id:{redis.pid}" in str(call(redis.url, "INFO"))


def test_it_is_durable_and_evicts_nothing(redis: NativeBroker) -> None:
    assert call(redis.url, "CONFIG", "GET", "appendonly") == ["appendonly", "yes"]
    assert call(redis.url, "CONFIG", "GET", "appendfsync") == ["appendfsync", "everysec"]
    assert call(redis.url, "CONFIG", "GET", "save") == ["save", ""]
    assert call(redis.url, "CONFIG", "GET", "maxmemory-policy") == ["maxmemory-policy", "noeviction"]


def test_stop_leaves_no_process_and_no_folder() -> None:
    broker = own()
    assert left_behind(broker.home)
    broker.stop()
    broker.stop()
    assert not left_behind(broker.home)
    assert not broker.home.exists()


def test_kill_and_restart_keep_port_and_data(redis: NativeBroker) -> None:
    pid, url = redis.pid, redis.url
    call(url, "SET", "key", "kept")
    redis.kill()
    with pytest.raises(ConnectionRefusedError):
        call(url, "PING")
    redis.restart()
    assert call(url, "GET", "key") == "kept"
    assert redis.url == url
    assert redis.pid != pid


def test_an_orderly_restart_keeps_data(redis: NativeBroker) -> None:
    call(redis.url, "SET", "key", "kept")
    redis.restart()
    assert call(redis.url, "GET", "key") == "kept"


def test_after_stop_there_is_nothing_to_restart() -> None:
    broker = own()
    broker.stop()
    with pytest.raises(brokers.BrokerUnavailable, match="start another one"):
        broker.restart()


def test_a_paused_broker_accepts_and_does_not_answer(redis: NativeBroker) -> None:
    redis.pause()
    with pytest.raises(TimeoutError), Connection(redis.url, timeout=0.2) as connection:
        connection.call("PING")
    redis.resume()
    assert call(redis.url, "PING") == "PONG"


def test_a_paused_broker_can_be_stopped() -> None:
    broker = own()
    broker.pause()
    broker.stop()
    assert not left_behind(broker.home)


def test_a_password_is_asked_for_and_never_shown() -> None:
    with own(password='s3 "cret') as broker:
        assert call(broker.url, "PING") == "PONG"
        with pytest.raises(ReplyError, match="NOAUTH"):
            call(f"redis://127.0.0.1:{broker.port}", "PING")
        with pytest.raises(PermissionError):
            call(f"redis://:wrong@127.0.0.1:{broker.port}", "PING")
        assert "s3" not in repr(broker)
        assert not any("s3" in line for line in left_behind(broker.home))


def test_an_acl_user_is_the_only_one() -> None:
    with own(user="shop", password="s3cret") as broker:
        assert call(broker.url, "ACL", "WHOAMI") == "shop"
        with pytest.raises(ReplyError, match="NOAUTH"):
            call(f"redis://127.0.0.1:{broker.port}", "PING")


def test_configuration_is_handed_over() -> None:
    with brokers.start("redis", config={"maxmemory": "10mb"}) as broker:
        assert call(broker.url, "CONFIG", "GET", "maxmemory") == ["maxmemory", str(10 * 1024 * 1024)]


def test_wrong_configuration_fails_with_what_the_server_said() -> None:
    with pytest.raises(brokers.BrokerUnavailable, match=r"redis ended with status 1: .*directive"):
        brokers.start("redis", config={"no-such-setting": "1"})


def test_a_broker_outlives_the_thread_that_started_it() -> None:
    started: list[NativeBroker] = []
    thread = threading.Thread(target=lambda: started.append(own()))
    thread.start()
    thread.join()
    with started[0] as broker:
        assert call(broker.url, "PING") == "PONG"


def test_two_at_once_do_not_share_anything(redis: NativeBroker) -> None:
    with own() as other:
        call(redis.url, "SET", "key", "mine")
        assert call(other.url, "GET", "key") is None
        assert other.home != redis.home


def test_a_broker_that_ended_by_itself_is_stopped_all_the_same() -> None:
    broker = own()
    with pytest.raises(ConnectionError):
        call(broker.url, "SHUTDOWN", "NOSAVE")
    broker.stop()
    wait_until_nothing_is_left(broker.home)


def test_a_cluster_has_three_nodes_that_share_the_slots() -> None:
    with brokers.redis_cluster() as cluster:
        assert cluster.url.startswith("redis+cluster://127.0.0.1:")
        assert cluster.url.count(",") == 2
        for node in cluster.nodes:
            information = str(call(node.url, "CLUSTER", "INFO"))
            assert "cluster_state:ok" in information
            assert "cluster_slots_ok:16384" in information
            assert "cluster_known_nodes:3" in information
        homes: list[Path] = [node.home for node in cluster.nodes]
    for home in homes:
        assert not left_behind(home)
