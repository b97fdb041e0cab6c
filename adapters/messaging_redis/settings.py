"""The URL and the options of the Redis adapter, read without I/O. No representation of them shows a password."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from messaging.errors import ConfigurationError
from messaging.names import check_namespace
from messaging.registry import with_plain_scheme
from messaging.urls import ESCAPED, check_host, read_query

if TYPE_CHECKING:
    from collections.abc import Mapping

Mode: TypeAlias = Literal["single", "cluster", "sentinel", "socket"]

SCHEMES: dict[str, tuple[Mode, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("socket", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
_CLIENT_ONLY = ("protocol", "legacy_responses")
"""Parameters of redis-py's own URLs that change the shape of its answers: read and left out."""


class RedisSettings(BaseModel):
    """Where the broker is and how this adapter uses it. Durations are seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = "single"
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    """The socket of a `unix://` URL."""
    master: str | None = None
    """The name that the sentinels know the master by."""

    db: int = Field(default=0, ge=0)
    username: str | None = None
    password: SecretStr | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    ca: str | None = None
    """A file of certificate authorities, PEM."""
    cert: str | None = None
    key: str | None = None
    check_hostname: bool = True

    namespace: str | None = None
    prefix: str = "messaging:"
    """Every key begins with it, so that an ACL rule `~messaging:*` covers them all."""
    lease: float = Field(default=30.0, ge=0.1, le=3600)
    """How long a delivery of an unordered group stays with a member that shows no life."""
    partition_lease: float = Field(default=5.0, ge=0.2, le=600)
    """How long a partition of an ordered group stays with a member that shows no life."""
    drain: float = Field(default=30.0, gt=0)
    """How long a member may take to finish what runs before it gives a partition back."""
    block: float = Field(default=2.0, gt=0, le=10)
    """The longest that one read waits on the server: a lost connection is noticed two seconds later."""
    poll: float = Field(default=1.0, gt=0, le=60)
    """How often due retries of other members are looked for: the bound of their lateness."""
    connect_timeout: float = Field(default=5.0, gt=0)
    socket_timeout: float = Field(default=5.0, gt=0)
    max_connections: int = Field(default=32, ge=1)
    """Connections for commands, per node; reads that wait have their own."""
    max_message_bytes: int = Field(default=1024 * 1024, ge=1024)
    history: float = Field(default=60.0, ge=0)
    """How long a message is kept that every group has handled, for groups that start in the past."""
    trim_interval: float = Field(default=15.0, gt=0)
    """How often what is no longer needed is removed from a topic."""
    reply_ttl: float = Field(default=120.0, ge=1)
    """How long replies stay that nobody fetches."""

    @field_validator("prefix")
    @classmethod
    def _no_braces(cls, prefix: str) -> str:
        if "{" in prefix or "}" in prefix:
            raise ValueError("braces would change the cluster's hash slots")
        return prefix

    @field_validator("namespace")
    @classmethod
    def _portable(cls, namespace: str | None) -> str | None:
        return None if namespace is None else check_namespace(namespace)

    @property
    def address(self) -> str:
        """Host and port, for errors and logs."""
        if self.mode == "socket":
            return f"unix:{self.path}"
        return ",".join(f"{host}:{port}" for host, port in self.hosts)

    @classmethod
    def from_url(
        cls, url: str, options: Mapping[str, Any] | None = None, *, namespace: str | None = None
    ) -> RedisSettings:
        """The URL's query parameters count before `options`. Raises ConfigurationError, never showing a password."""
        values: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
        for name in options or {}:
            if name in _FROM_URL:
                raise ConfigurationError(
                    f"[broker.redis] has the option {name!r}, which only the URL can say"
                )
            if name not in _KNOWN:
                raise ConfigurationError(
                    f"[broker.redis] has an unknown option {name!r}; known are {', '.join(_KNOWN)}"
                )
        values.update(options or {})
        values.update(_parse(url))
        for name in _CLIENT_ONLY:
            values.pop(name, None)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise ConfigurationError(f"options of the Redis adapter: {problems}") from None


_FROM_URL = frozenset({"mode", "tls", "hosts", "path", "master"})
"""What the URL says by its scheme, hosts and path."""
_KNOWN = (*sorted(RedisSettings.model_fields.keys() - _FROM_URL), *_CLIENT_ONLY)


def _parse(url: str) -> dict[str, Any]:
    scheme, _, rest = with_plain_scheme(url).partition("://")
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f"the URL has no scheme of the Redis adapter; known are {', '.join(SCHEMES)}"
        )
    mode, tls = SCHEMES[scheme]
    if "#" in rest:
        raise ConfigurationError(f"the Redis URL has a fragment (#...): {ESCAPED}")
    location, _, query = rest.partition("?")
    options = read_query(query, _KNOWN, "the Redis URL")
    values = {"mode": mode, "tls": tls, **_read_location(location, mode)}
    if twice := sorted(options.keys() & values.keys()):
        raise ConfigurationError(f"the Redis URL says {twice[0]!r} twice: before its ? and as an option")
    values |= options
    if mode == "cluster" and str(values.get("db", "0")) != "0":
        raise ConfigurationError("a Redis Cluster has database 0 only")
    return values


def _read_location(location: str, mode: Mode) -> dict[str, Any]:
    values: dict[str, Any] = {}
    credentials, at, location = location.rpartition("@")
    if at:
        user, colon, password = credentials.partition(":")
        if user:
            values["username"] = unquote(user)
        if colon and password:
            values["password"] = unquote(password)
    if mode == "socket":
        values["path"] = unquote(location)
        if not location.startswith("/"):
            raise ConfigurationError("a unix:// URL names the socket's absolute path: unix:///run/redis.sock")
        return values
    hosts, _, path = location.partition("/")
    values["hosts"] = _hosts(hosts, _SENTINEL_PORT if mode == "sentinel" else _DEFAULT_PORT)
    _read_path(values, mode, [unquote(part) for part in path.split("/") if part])
    if mode == "single" and len(values["hosts"]) > 1:
        raise ConfigurationError("several hosts need redis+cluster:// or redis+sentinel://")
    return values


def _read_path(values: dict[str, Any], mode: Mode, parts: list[str]) -> None:
    if mode == "sentinel":
        if not parts:
            raise ConfigurationError(
                "redis+sentinel:// names the master as its path: redis+sentinel://host/mymaster"
            )
        values["master"] = parts.pop(0)
    if parts:
        if not parts[0].isdecimal() or len(parts) > 1:
            raise ConfigurationError(f"the path of a Redis URL is a database number; {ESCAPED}")
        values["db"] = parts[0]


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts: list[tuple[str, int]] = []
    for item in (text or "localhost").split(","):
        host, colon, port = item.rpartition(":")
        if not colon or item.endswith("]"):
            host, port = item, str(default_port)
        host = check_host(unquote(host) or "localhost", "the Redis URL")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"the Redis URL has a port that is no port number; {ESCAPED}")
        hosts.append((host, int(port)))
    return tuple(hosts)
