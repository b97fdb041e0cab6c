"""Where faults are tried: a broker of our own that notices lost members soon, and the way to it through a proxy."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from messaging_contracts import brokers
from messaging_contracts.brokers.kafka import listener
from messaging_contracts.brokers.process import LOOPBACK, free_port
from messaging_contracts.targets import with_options

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import Any

    from messaging_contracts.brokers import Broker

LEASES: Mapping[str, float] = {
    "memory": 3.0,
    "redis": 3.0,
    "rabbitmq": 9.0,
    "kafka": 10.0,
    "sqs": 5.0,
}
"""Seconds until a lost member is noticed at the latest. Short, so that what waits for it does not wait long."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "redis": {"lease": 3, "partition_lease": 3},
    "rabbitmq": {"heartbeat": 3},
    "kafka": {"session": 5, "heartbeat": 0.5},
    "sqs": {"lease": 5, "poll_wait": 1},
}
"""What makes a broker notice it by then: RabbitMQ gives a silent member up after two or three heartbeats, Kafka moves
what it had after a session, or two where the group was about to change.
"""
FORGETFUL = frozenset({"sqs"})
"""Brokers that come back empty: for them a restart is an outage at the proxy."""
MEMORY = "memory"
NAMES = tuple(LEASES)


@dataclass(frozen=True, slots=True)
class Ground:
    """One broker, ready for one fault after the other."""

    name: str
    version: str
    url: str
    lease: float
    broker: Broker | None
    """None: in memory, in the process that tries the fault."""
    upstream: tuple[str, int] = ("", 0)
    """Where a proxy leads to."""
    proxy_port: int = 0
    """Where the proxy has to be, because the broker sends its clients there; 0: anywhere."""

    @property
    def keeps_its_data(self) -> bool:
        """Whether a restart of the broker loses nothing."""
        return self.name not in FORGETFUL

    @property
    def remembers(self) -> bool:
        """Whether it keeps how often a message of an ordered group failed; else the member does that holds it (2)."""
        return self.name not in {"rabbitmq", "sqs"}

    @property
    def server(self) -> Broker:
        """The broker, which is a process of its own."""
        assert self.broker is not None, "nothing in memory can be restarted by itself"
        return self.broker

    def through(self, port: int) -> str:
        """The broker's URL with a proxy at this port of ours in its place."""
        if self.name == "sqs":
            return with_options(self.url, endpoint_url=f"http://{LOOPBACK}:{port}")
        host, own = _address(self.url)
        return self.url.replace(f"{host}:{own}", f"{LOOPBACK}:{port}", 1)


@contextmanager
def ground(name: str, *, own: bool = True) -> Generator[Ground]:
    """Start this broker for the body, or use one that is there: it cannot be restarted. Raises BrokerUnavailable."""
    if name == MEMORY:
        yield Ground(
            name, "", f"memory://faults-{secrets.token_hex(4)}?lease={LEASES[name]:g}", LEASES[name], None
        )
        return
    inner, proxy_port = 0, 0
    config: dict[str, str] = {}
    if name == "kafka" and own:
        # Kafka tells its clients where to go on: to the proxy, when they came by it.
        inner, proxy_port = free_port(), free_port()
        config = listener("PROXIED", inner, advertised=f"{LOOPBACK}:{proxy_port}")
    with brokers.start(name, own=own, config=config) as broker:
        os.environ.update(broker.client_environment)
        upstream = (LOOPBACK, inner) if proxy_port else _address(broker.url)
        url = with_options(broker.url, **OPTIONS[name])
        yield Ground(name, broker.version, url, LEASES[name], broker, upstream, proxy_port)


def _address(url: str) -> tuple[str, int]:
    endpoint = dict(parse_qsl(urlsplit(url).query)).get("endpoint_url")
    parts = urlsplit(endpoint or url)
    assert parts.hostname is not None and parts.port is not None, "the URL of a broker of our own has both"
    return parts.hostname, parts.port
