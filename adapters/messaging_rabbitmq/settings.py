"""What can be set for RabbitMQ, by the URL's query or by `[broker.rabbitmq]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from messaging.errors import ConfigurationError
from messaging.urls import ESCAPED, check_host, read_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging.adapter import AdapterContext

MIB = 1024 * 1024
DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}


class RabbitMQSettings(BaseModel):
    """Where the broker is, and how this adapter uses it. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hosts: tuple[tuple[str, int], ...] = (("localhost", 5672),)
    """Nodes of one cluster: one of them is used, and another when that is lost."""
    tls: bool = False
    user: str = "guest"
    password: SecretStr = SecretStr("guest")
    virtual_host: str = "/"
    namespace: str | None = None

    heartbeat: int = Field(default=15, ge=2, le=600)
    """A silent peer is given up after about two of these, and a member that stands still for longer than about one
    loses what it holds. With one second there is no time between a sign of life that is due and one that is late.
    """
    connect_timeout: float = Field(default=5.0, gt=0)
    operation_timeout: float = Field(default=10.0, gt=0)
    """For one declaration or another single exchange with the broker."""
    confirm_timeout: float = Field(default=30.0, gt=0)
    """How long a publish waits for its place and its confirm: a broker short of memory or disk confirms nothing."""
    max_message_bytes: int = Field(default=MIB, ge=1024, le=16 * MIB)
    """RabbitMQ 4 refuses more than 16 MiB (`max_message_size`) by closing the channel."""
    confirm_each: bool = False
    """A key's next message on an ordered topic waits for the confirm of the one before it, from the start. Without it
    that begins when the broker first did not confirm one, and in that first batch a later message of the key may have
    been stored. Set it where a policy makes queues refuse messages (`reject-publish`).
    """
    consumer_timeout: float = Field(default=1800.0, gt=0)
    """What the broker is configured with (`consumer_timeout`): it takes back what is unacknowledged for longer."""
    outstanding: int = Field(default=4096, ge=1)
    """Publishes handed over and not yet confirmed; more of them wait."""
    revoke_timeout: float = Field(default=30.0, ge=0)
    """How long handlers may run on when a partition goes to another member."""
    adopted_queues: Literal["refuse", "limited"] = "refuse"
    """`limited` accepts what cannot be promised for a queue that is not ours: see the adapter's documentation."""

    ca: str | None = None
    """A file of certificate authorities, PEM."""
    cert: str | None = None
    key: str | None = None
    check_hostname: bool = True

    @property
    def address(self) -> str:
        """Hosts and ports, for errors and logs."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)


_FROM_URL = frozenset({"hosts", "tls", "user", "password", "virtual_host"})
_KNOWN = sorted(RabbitMQSettings.model_fields.keys() - _FROM_URL)


def read_settings(url: str, context: AdapterContext) -> RabbitMQSettings:
    """Read the URL and the options; the URL's query comes first.

    Raises ConfigurationError that names the option, never its value: it may be a secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"the RabbitMQ URL has an illegal host or port; {ESCAPED}") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ConfigurationError("a RabbitMQ URL begins with amqp:// or amqps://")
    if parts.fragment:
        raise ConfigurationError(f"the RabbitMQ URL has a fragment (#...): {ESCAPED}")
    if "@" in parts.path:
        # Behind a password with an unescaped / is what would be the virtual host, and a piece of it would be the host.
        raise ConfigurationError(
            f"the RabbitMQ URL has an @ in its path: {ESCAPED}; so it is in a virtual host"
        )
    values: dict[str, Any] = _checked_options(context.options)
    values |= read_query(parts.query, _KNOWN, "the RabbitMQ URL")
    values |= {
        "hosts": _hosts(parts.netloc, DEFAULT_PORTS[parts.scheme]),
        "tls": parts.scheme == "amqps",
        "virtual_host": unquote(parts.path[1:]) or "/",
    }
    if parts.username:
        values["user"] = unquote(parts.username)
    if parts.password is not None:
        values["password"] = SecretStr(unquote(parts.password))
    values.setdefault("namespace", context.namespace)
    try:
        return RabbitMQSettings.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(f"RabbitMQ settings: {wrong}") from None


def _hosts(location: str, default_port: int) -> tuple[tuple[str, int], ...]:
    # Not `hostname`, which leaves out what is written behind a bracket.
    items = location.rpartition("@")[2].split(",")
    hosts: list[tuple[str, int]] = []
    for item in items:
        host, colon, port = item.rpartition(":")
        if not colon or item.endswith("]"):
            host, port = item, ""
        is_number = port.isascii() and port.isdecimal()
        number = int(port) if is_number else default_port
        if (port and not is_number) or not 0 < number < 65536 or (not host and len(items) > 1):
            raise ConfigurationError(f"the RabbitMQ URL has an illegal host or port; {ESCAPED}")
        hosts.append((check_host(host or "localhost", "the RabbitMQ URL").lower(), number))
    return tuple(hosts)


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in _KNOWN:
            raise ConfigurationError(
                f"[broker.rabbitmq] has an unknown option {name!r}; known are {', '.join(_KNOWN)}"
            )
    return dict(options)
