"""What a test sees of a broker, however it was found, and what each kind of broker has to tell about
itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType


class BrokerUnavailable(Exception):
    """A broker can be had in no way, or did not become ready. The text is one line and says what to do."""


class NotReady(Exception):
    """The broker answers, but not yet with service."""


@dataclass(frozen=True)
class Options:
    """How a broker of one's own is to be configured. An empty user and password mean the kind's own
    default.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    config: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Command:
    """One program of a native broker. The last one of a broker is the broker itself."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Container:
    """How a broker runs in a container."""

    image: str
    port: int
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


class Kind(Protocol):
    """One kind of broker: how it is named, started and asked. Each has a file of its name."""

    name: str
    package: str
    """What to install, as Debian names it: one or more packages, separated by blanks."""

    client_environment: Mapping[str, str]
    """What its clients need in their environment besides the URL."""

    def program(self) -> Path | None:
        """The server's program on this machine, if it is there."""
        ...

    def url(self, host: str, port: int, options: Options) -> str:
        """The URL of a broker started with these options."""
        ...

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        """Write the configuration into `home` and tell what to run, in order.

        :raises BrokerUnavailable: something that has to be fetched for it cannot be had
        """
        ...

    def container(self, options: Options, host: str, port: int) -> Container | None:
        """What to run in Docker, reached at this host and port; None where a container cannot have these
        options.

        The environment may name another image and command.
        """
        ...

    def version(self, url: str, timeout: float) -> str:
        """Ask the server, by a whole handshake in its own protocol, for its version.

        :raises NotReady: it answers, but does not serve yet
        :raises OSError: it does not answer within `timeout` seconds
        :raises PermissionError: it refuses the credentials
        """
        ...


class Broker(ABC):
    """A running broker. A context manager that ends what was started, and leaves alone what was only found.

    `stop` is safe to call twice. A broker is also ended when the process that started it ends, in whatever
    way.
    """

    def __init__(
        self, name: str, url: str, version: str, client_environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.url = url
        self.version = version
        self.client_environment: Mapping[str, str] = client_environment or {}
        """What a client needs in its environment besides the URL: AWS takes credentials from nowhere else."""

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        return f"<{type(self).__name__} {self.name} {self.version} at {parts.netloc.rpartition('@')[2]}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process id of the server; another one after `restart`."""

    @abstractmethod
    def stop(self) -> None:
        """End the broker and remove its data. It cannot be started again."""

    @abstractmethod
    def kill(self) -> None:
        """End the server with SIGKILL. Its data stay for `restart`."""

    @abstractmethod
    def restart(self) -> None:
        """Start the server again on the same port with the same data; one that runs is first ended in an
        orderly way.

        Returns when it serves. LocalStack (`sqs`) alone keeps nothing: it comes back empty.
        """

    @abstractmethod
    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers."""

    @abstractmethod
    def resume(self) -> None:
        """Let a paused server go on."""


class FoundBroker(Broker):
    """A broker named by a URL in the environment. It is used and never stopped, killed or paused."""

    @property
    def pid(self) -> int:
        raise self._not_ours("has no process id here")

    def stop(self) -> None:
        return

    def kill(self) -> None:
        raise self._not_ours("cannot be killed")

    def restart(self) -> None:
        raise self._not_ours("cannot be restarted")

    def pause(self) -> None:
        raise self._not_ours("cannot be paused")

    def resume(self) -> None:
        raise self._not_ours("cannot be resumed")

    def _not_ours(self, what: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the {self.name} named by the environment {what}; ask for one of your own with own=True"
        )
