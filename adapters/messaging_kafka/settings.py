"""The URL and the options of the Kafka adapter, read without I/O. No representation of them shows a secret."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from messaging.errors import ConfigurationError
from messaging.registry import with_plain_scheme
from messaging.urls import ESCAPED, check_host, read_query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging.adapter import AdapterContext

SCHEMES = {"kafka": False, "kafka+ssl": True}
"""Whether the scheme says TLS."""
DEFAULT_PORT = 9092
KIB = 1024

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]


class KafkaSettings(BaseModel):
    """Where the brokers are and how this adapter uses them. Durations are seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hosts: tuple[str, ...] = (f"localhost:{DEFAULT_PORT}",)
    tls: bool = False
    user: str | None = None
    password: SecretStr | None = None
    sasl: Mechanism | None = None
    """PLAIN where the URL has a user, unless another is named."""
    oauth_token: SecretStr | None = None
    oauth_token_file: str | None = None
    """Read at each connection, so that whoever renews the token only writes the file."""
    oauth_provider: str | None = None
    """`package.module:function`, called without arguments at each connection; it may be async."""
    ca: str | None = None
    """A file of certificate authorities, PEM."""
    cert: str | None = None
    key: str | None = None
    check_hostname: bool = True

    namespace: str | None = None
    client_id: str = "messaging"
    compression: Compression = "none"
    replication: int | None = Field(default=None, ge=1, le=32767)
    """Copies of each topic that is created; three, or as many as there are brokers."""
    max_message_bytes: int = Field(default=1000 * KIB, ge=KIB, le=64 * KIB * KIB)
    session: float = Field(default=10.0, ge=1, le=1800)
    """How long a silent member stays in its group; brokers allow 6 to 1800 unless configured otherwise."""
    heartbeat: float = Field(default=1.0, gt=0, le=60)
    """How often a member says that it lives, and learns that others came or went."""
    drain: float = Field(default=30.0, gt=0)
    """How long a member may take to finish what runs before it gives a partition to another."""
    join_delay: float = Field(default=0.2, ge=0, le=10)
    """How long a member that finds its group empty waits for others that start with it, before it takes all."""
    fetch_wait: float = Field(default=0.25, gt=0, le=5)
    """How long the broker may keep a fetch that finds nothing; a new partition may have to wait for that."""
    retention: float = Field(default=7 * 86400.0, gt=0)
    """How long topics that say nothing keep a message, handled or not."""
    connect_timeout: float = Field(default=5.0, gt=0)
    operation_timeout: float = Field(default=10.0, gt=0)
    """For one exchange with a broker that is no publish."""
    confirm_timeout: float = Field(default=30.0, gt=0)
    """How long a publish waits for its confirmation."""
    reply_partitions: int = Field(default=16, ge=1, le=1000)
    """What the shared reply topic is created with."""

    @property
    def address(self) -> str:
        """Hosts and ports, for errors and logs."""
        return ",".join(self.hosts)

    @model_validator(mode="after")
    def _consistent(self) -> KafkaSettings:
        if self.sasl == "OAUTHBEARER":
            given = [self.oauth_token, self.oauth_token_file, self.oauth_provider]
            if sum(value is not None for value in given) != 1:
                raise ValueError("OAUTHBEARER needs one of oauth_token, oauth_token_file, oauth_provider")
        elif self.sasl is not None and (self.user is None or self.password is None):
            raise ValueError(f"{self.sasl} needs a user and a password")
        if self.heartbeat * 3 > self.session:
            raise ValueError("heartbeat must be at most a third of session")
        if self.compression not in {"none", "gzip"} and find_spec("cramjam") is None:
            raise ValueError(f"compression {self.compression} needs the package cramjam")
        return self


_FROM_URL = frozenset({"hosts", "tls", "user", "password"})
_KNOWN = sorted(KafkaSettings.model_fields.keys() - _FROM_URL)


def read_settings(url: str, context: AdapterContext) -> KafkaSettings:
    """Read the URL and the options; the URL's query comes first.

    Raises ConfigurationError that names the option, never its value: it may be a secret.
    """
    scheme, _, rest = with_plain_scheme(url).partition("://")
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f"the URL has no scheme of the Kafka adapter; known are {', '.join(SCHEMES)}"
        )
    rest, fragment, _ = rest.partition("#")
    if fragment:
        raise ConfigurationError(f"the Kafka URL has a fragment (#...): {ESCAPED}")
    location, _, query = rest.partition("?")
    values: dict[str, Any] = _checked_options(context.options)
    values |= read_query(query, _KNOWN, "the Kafka URL")
    credentials, at, location = location.rpartition("@")
    hosts, slash, path = location.partition("/")
    if slash and path:
        raise ConfigurationError(f"a Kafka URL has no path: kafka://host:9092,host:9092; {ESCAPED}")
    values |= {"hosts": _hosts(hosts), "tls": SCHEMES[scheme]}
    if at:
        user, _, password = credentials.partition(":")
        values |= {"user": unquote(user), "password": unquote(password)}
        values.setdefault("sasl", "PLAIN")
    if context.namespace is not None:
        values.setdefault("namespace", context.namespace)
    try:
        return KafkaSettings.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ")
            for one in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise ConfigurationError(f"Kafka settings: {wrong}") from None


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in _KNOWN:
            raise ConfigurationError(
                f"[broker.kafka] has an unknown option {name!r}; known are {', '.join(_KNOWN)}"
            )
    return dict(options)


def _hosts(text: str) -> tuple[str, ...]:
    hosts: list[str] = []
    for item in (text or "localhost").split(","):
        host, colon, port = item.rpartition(":")
        if not colon or item.endswith("]"):
            host, port = item, str(DEFAULT_PORT)
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"the Kafka URL has a part that is no host and port; {ESCAPED}")
        check_host(host, "the Kafka URL")
        hosts.append(f"{host}:{port}")
    return tuple(hosts)
