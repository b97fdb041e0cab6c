"""Redis in a cluster: the nodes that the first one names are verified as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from messaging import ConnectionFailed, connect
from messaging_contracts import brokers
from messaging_contracts.brokers.broker import NotReady
from messaging_contracts.brokers.process import LOOPBACK, NativeBroker, free_port, wait_until_ready
from messaging_contracts.brokers.resp import Connection
from tests.tls.conftest import Authority, Server, redis_configuration
from tests.tls.test_tls import passes

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def cluster(authority: Authority) -> Iterator[Server]:
    """One node that has all slots and tells its TLS port to those who ask by TLS."""
    port = free_port()
    configuration = redis_configuration(port, authority.issue(LOOPBACK), demanding=False)
    configuration |= {"cluster-enabled": "yes", "cluster-port": str(free_port()), "tls-cluster": "yes"}
    with brokers.start("redis", native=True, config=configuration) as broker:
        assert isinstance(broker, NativeBroker)
        with Connection(broker.url, timeout=5) as connection:
            connection.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            def state(_: float) -> str:
                information = str(connection.call("CLUSTER", "INFO"))
                if "cluster_state:ok" not in information:
                    raise NotReady(information)
                return information

            wait_until_ready("the Redis cluster", state, broker.watch, timeout=20)
        yield Server("redis", "rediss+cluster", port, 0)


async def test_messages_pass_when_the_authority_is_named(cluster: Server, authority: Authority) -> None:
    async with connect(cluster.url(ca=authority.file)) as bus:
        await passes(bus)


@pytest.mark.parametrize("named", [False, True], ids=["the system's", "another"])
async def test_a_certificate_of_an_authority_that_is_not_trusted_is_refused(
    named: bool, cluster: Server, stranger: Authority
) -> None:
    options: dict[str, Path] = {"ca": stranger.file} if named else {}
    with pytest.raises(ConnectionFailed, match=r"(?i)certificate"):
        async with connect(cluster.url(**options)):
            pass
