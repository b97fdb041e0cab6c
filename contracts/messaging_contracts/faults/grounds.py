"""Our own brokers as grounds for faults: each notices lost members soon."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from messaging.cli.program import load
from messaging.errors import ConfigurationError
from messaging_contracts import brokers
from messaging_contracts.brokers.kafka import listener
from messaging_contracts.brokers.process import LOOPBACK, free_port
from messaging_contracts.faults import removal, servers
from messaging_contracts.faults.ground import Ground
from messaging_contracts.targets import with_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging_contracts.brokers import Broker
    from messaging_contracts.faults.ground import Offer, Part, Resource

OFFERS: Mapping[str, frozenset[Offer]] = {
    "kafka": frozenset(("processes", "network", "restart", "data", "deletion", "once")),
    "sqs": frozenset(("processes", "network", "restart", "deletion", "once")),
    "rabbitmq": frozenset(
        ("processes", "network", "restart", "data", "memory", "disk", "closing", "deletion")
    ),
    "redis": frozenset(
        ("processes", "network", "restart", "data", "memory", "disk", "closing", "deletion", "once")
    ),
    "memory": frozenset(),
}
"""Those that take longest come first, so that two at a time end together. LocalStack (`sqs`) comes back empty."""
NAMES = tuple(OFFERS)
LEASES: Mapping[str, float] = {
    "memory": 3.0,
    "redis": 3.0,
    "rabbitmq": 9.0,
    "kafka": 10.0,
    "sqs": 5.0,
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "redis": {"lease": 3, "partition_lease": 3},
    "rabbitmq": {"heartbeat": 3},
    "kafka": {"session": 5, "heartbeat": 0.5},
    "sqs": {"lease": 5, "poll_wait": 1},
}
"""What makes a broker notice it by then: RabbitMQ gives a silent member up after two or three heartbeats, Kafka moves
what it had after a session, or two where the group was about to change.
"""


class MemoryGround(Ground):
    """The broker in memory, in the process that tries the fault."""

    name = "memory"
    offers = OFFERS["memory"]
    lease = LEASES["memory"]

    def start(self) -> None:
        self.url = f"memory://faults-{secrets.token_hex(4)}?lease={self.lease:g}"

    def stop(self) -> None:
        return


class ServerGround(Ground):
    """A broker that is a server: started, or, without `own`, perhaps one that is there and cannot be restarted."""

    def __init__(self, name: str, *, own: bool = True) -> None:
        self.name = name
        self.offers = OFFERS[name]
        self.lease = LEASES[name]
        self.remembers = name not in {"rabbitmq", "sqs"}
        self._own = own
        self._broker: Broker | None = None
        self._inner = 0
        """Where a broker listens that sends its clients to the proxy; 0: where it listens for all."""

    def start(self) -> None:
        config: dict[str, str] = {}
        if self.name == "kafka" and self._own:
            # Kafka tells its clients where to go on: to the proxy, when they came by it.
            self._inner, self.proxy_port = free_port(), free_port()
            config = listener("PROXIED", self._inner, advertised=f"{LOOPBACK}:{self.proxy_port}")
        broker = self._broker = brokers.start(self.name, own=self._own, config=config)
        os.environ.update(broker.client_environment)
        self.version = broker.version
        self.url = with_options(broker.url, **OPTIONS[self.name])

    def stop(self) -> None:
        self._server.stop()

    @property
    def upstream(self) -> tuple[str, int]:
        if self._inner:
            return LOOPBACK, self._inner
        endpoint = urlsplit(dict(parse_qsl(urlsplit(self.url).query)).get("endpoint_url", self.url))
        assert endpoint.hostname is not None and endpoint.port is not None, "a broker of our own has both"
        return endpoint.hostname, endpoint.port

    def through(self, port: int) -> str:
        if self.name == "sqs":
            return with_options(self.url, endpoint_url=f"http://{LOOPBACK}:{port}")
        return super().through(port)

    @property
    def _server(self) -> Broker:
        assert self._broker is not None, f"{self.name} is not started"
        return self._broker

    def kill(self) -> None:
        self._server.kill()

    def restart(self) -> None:
        self._server.restart()

    def exhaust(self, resource: Resource, exhausted: bool) -> None:
        servers.exhaust(self._server, resource, exhausted)

    def close_connections(self) -> None:
        servers.close_connections(self._server)

    async def remove(self, native: Any, namespace: str, part: Part) -> None:
        await removal.remove(self.name, self.url, native, namespace, part)


def ground(name: str, *, own: bool = True) -> Ground:
    """One of `NAMES`, not started yet."""
    return MemoryGround() if name == MemoryGround.name else ServerGround(name, own=own)


def ours() -> Sequence[Ground]:
    """All brokers of our own."""
    return [ground(name) for name in NAMES]


def theirs(name: str) -> Ground:
    """The ground of which `module:attribute` names the class. Raises ConfigurationError."""
    found = load(name, "a broker", "tests.ground:AcmeGround")
    if not (isinstance(found, type) and issubclass(found, Ground)):
        raise ConfigurationError(f"{name} is no class below messaging_contracts.faults.Ground but {found!r}")
    return found()
