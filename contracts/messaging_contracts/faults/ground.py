"""Where faults are tried: a broker that can be started and broken, ours or a third party's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from messaging_contracts.faults.proxy import LOOPBACK

if TYPE_CHECKING:
    from types import TracebackType

Offer: TypeAlias = Literal[
    "processes", "network", "restart", "data", "memory", "disk", "closing", "deletion", "once"
]
"""What can be done to a broker. A fault is tried where all is offered that it needs.

`processes`: its members are processes, and not tasks of one. `network`: it is reached by TCP, and so through a proxy
(`through`). `restart`: its server can be killed and started again (`kill`, `restart`). `data`: it has all of its
messages then; without, it needs `network` too, and is out of reach at the proxy instead. `memory`, `disk`: it can be
made to run out of it (`exhaust`). `closing`: it ends connections on command. `deletion`: what a group reads can be
deleted (`remove`). `once`: it keeps `idempotent_publish`, on some topics at least.
"""
Resource: TypeAlias = Literal["memory", "disk"]
Part: TypeAlias = Literal["queues", "topics"]
"""Where a group's messages lie, or what they are published to; on some brokers one and the same."""


class Ground(ABC):
    """One broker, for one fault after the other; a context manager that starts and stops it.

    What it offers says which of its other methods are called. They block, and are called on a thread, but for `through`
    and `remove`.
    """

    name: str
    """What the table calls it, beside `version`, which may be known only when it runs."""
    version: str = ""
    offers: frozenset[Offer] = frozenset(("processes",))
    leaves_out: frozenset[str] = frozenset()
    """Names of faults that are not tried although all is offered that they need. Write the reason beside it."""
    lease: float
    """Seconds until a lost member is noticed at the latest. Short, so that what waits for it does not wait long."""
    url: str
    """Where it is once it was started, with options that make it notice a lost member in time."""
    proxy_port: int = 0
    """Where the proxy has to be, because the broker sends its clients there; 0: anywhere."""
    remembers: bool = True
    """Whether it keeps how often a message of an ordered group failed; else the member does that holds it (2)."""

    @abstractmethod
    def start(self) -> None:
        """Start it, and set `url`; empty, also when it was stopped before. Raises BrokerUnavailable."""

    @abstractmethod
    def stop(self) -> None:
        """End it, and remove its data."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def upstream(self) -> tuple[str, int]:
        """Host and port where a proxy leads to: those of its URL."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None and parts.port is not None, "a broker with `network` has both"
        return parts.hostname, parts.port

    def through(self, port: int) -> str:
        """Its URL with a proxy at this port of ours in its place."""
        parts = urlsplit(self.url)
        return self.url.replace(f"{parts.hostname}:{parts.port}", f"{LOOPBACK}:{port}", 1)

    def kill(self) -> None:
        """End the server at once, as kill -9 does. Its data stay."""
        raise NotImplementedError

    def restart(self) -> None:
        """Start it again, at the same place and with the same data, and return when it serves.

        One that runs is first ended in an orderly way.
        """
        raise NotImplementedError

    def exhaust(self, resource: Resource, exhausted: bool) -> None:
        """Let it run out of this, or have enough of it again."""
        raise NotImplementedError

    def close_connections(self) -> None:
        """Let the broker itself end all connections once."""
        raise NotImplementedError

    async def remove(self, native: Any, namespace: str, part: Part) -> None:
        """Delete this of both topics of `worker.TOPICS`, and nothing beside it; `native` is the adapter's client."""
        raise NotImplementedError
