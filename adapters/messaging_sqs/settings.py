"""What can be set for SQS and SNS, by the URL's query or by `[broker.sqs]`. No credentials: the AWS chain has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from messaging.errors import ConfigurationError
from messaging.names import check_namespace
from messaging.urls import ESCAPED, read_query

if TYPE_CHECKING:
    from collections.abc import Mapping

KIB = 1024
MIB = 1024 * KIB
SNS_DEFAULT_BYTES = 256 * KIB
"""Amazon SNS, "Publishing large messages": of a topic that says nothing else, and of a batch."""
DAY = 86_400
LONGEST_RETENTION = 14 * DAY
"""Amazon SQS quotas, "Message retention"."""
SHORTEST_RETENTION = 60
FEWEST_RECEIVES = 10
"""With less, the service's own bound is met before the crash guard has judged."""
LONGEST_LEASE = 12 * 3600
"""Amazon SQS quotas, "Message visibility timeout": counted from the receive."""
LONGEST_HOLD = LONGEST_LEASE * 0.9
"""What is held under a lease; the rest is for the handler."""
LONGEST_POLL = 20
"""Amazon SQS quotas, "Long polling"."""

_REGION = re.compile(r"[a-z0-9-]+")
_OBJECTS = ("session", "sqs_client", "sns_client")


class SQSSettings(BaseModel):
    """Where the services are, and how this adapter uses them. Times are in seconds."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )

    region: str | None = None
    """None: what the AWS chain says (AWS_DEFAULT_REGION, the profile)."""
    endpoint_url: str | None = None
    """Of both services, for a server that is not AWS."""
    sqs_endpoint_url: str | None = None
    sns_endpoint_url: str | None = None
    sts_endpoint_url: str | None = None
    """Of the service that tells the account's number and gives the credentials of a role."""
    profile: str | None = None
    role: str | None = None
    """The ARN of a role to assume, with the credentials that the chain finds; renewed before they end."""
    account: str | None = None
    """The account's number. Without it, one call to STS asks for it when the connection is opened."""
    ca: str | None = None
    """A file of certificate authorities, PEM."""
    session: Any = Field(default=None, repr=False)
    """A `boto3.Session` of one's own; not by URL."""
    sqs_client: Any = Field(default=None, repr=False)
    """A boto3 client of one's own; not by URL. Its pool and its timeouts must fit `threads` and `poll_wait`."""
    sns_client: Any = Field(default=None, repr=False)

    fanout: Literal["sns", "client"] = "sns"
    """`client`: no SNS; a publisher sends to the queue of each declared group, one after the other."""
    namespace: str | None = None
    prefix: str = Field(default="messaging", pattern=r"^[A-Za-z0-9]{1,16}$")
    """Every name of ours begins with it, so that one pattern of an IAM policy covers them all."""
    lease: int = Field(default=30, ge=1, le=LONGEST_LEASE)
    """How long a delivery stays with a member that shows no life (the visibility timeout)."""
    poll_wait: int = Field(default=5, ge=1, le=LONGEST_POLL)
    """How long a receive waits at an idle queue. A member that leaves waits for it: a cut one would hide messages."""
    pollers: int = Field(default=4, ge=1, le=16)
    """Receives under way at once, per subscription, while there is work."""
    threads: int = Field(default=10, ge=1, le=64)
    """For all other calls."""
    connect_timeout: float = Field(default=5.0, gt=0)
    operation_timeout: float = Field(default=10.0, gt=0)
    """How long one answer may take, beyond what a receive waits."""
    max_message_bytes: int = Field(default=MIB, ge=KIB, le=MIB)
    """With attributes, as it travels. More than 256 KiB is written into each topic that we create."""
    retention: int = Field(default=LONGEST_RETENTION, ge=SHORTEST_RETENTION, le=LONGEST_RETENTION)
    """How long a queue that we create keeps what nobody handles."""
    max_receives: int = Field(default=1000, ge=FEWEST_RECEIVES, le=1000)
    """The backstop: what was received so often without an end, the service itself moves to the dead letters."""
    kms_key: str | None = None
    """Encrypts what we create with this key of KMS. Without it, the service's own (SSE-SQS; SNS: none)."""
    groups_refresh: float = Field(default=5.0, ge=0, le=60)
    """How old a publisher's knowledge of a topic's groups may be; with `fanout=client`, a new group waits for it."""

    @property
    def settle_timeout(self) -> float:
        """How long a member that leaves waits for what is being settled: a copy is stored, then its message removed."""
        return 2 * self.operation_timeout

    @field_validator("namespace")
    @classmethod
    def _portable(cls, namespace: str | None) -> str | None:
        return None if namespace is None else check_namespace(namespace)

    @field_validator("region")
    @classmethod
    def _legal(cls, region: str | None) -> str | None:
        if region is not None and not _REGION.fullmatch(region):
            raise ValueError("a region looks like us-east-1")
        return region

    @field_validator("endpoint_url", "sqs_endpoint_url", "sns_endpoint_url", "sts_endpoint_url")
    @classmethod
    def _reachable(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        if "@" in endpoint:
            raise ValueError(
                "an endpoint holds no user and password: nobody is told them but errors and logs"
            )
        if not _is_http(endpoint):
            raise ValueError("an endpoint looks like http://127.0.0.1:4566")
        return endpoint

    @property
    def address(self) -> str:
        """Where the service is, for errors and logs."""
        return (
            self.sqs_endpoint_url or self.endpoint_url or f"AWS {self.region or '(region of the AWS chain)'}"
        )

    @property
    def is_aws(self) -> bool:
        return self.sqs_endpoint_url is None and self.endpoint_url is None

    @property
    def batch_bytes(self) -> int:
        """What one call to SQS may send. A server with a lower limit for one message has it for a batch, too."""
        return max(self.max_message_bytes, SNS_DEFAULT_BYTES)

    @classmethod
    def from_url(
        cls, url: str, options: Mapping[str, Any] | None = None, *, namespace: str | None = None
    ) -> SQSSettings:
        """The URL's query parameters count before `options`. Raises ConfigurationError that shows no value."""
        known = list(cls.model_fields)
        values: dict[str, Any] = {} if namespace is None else {"namespace": namespace}
        values |= _checked(dict(options or {}), known)
        values |= _parse(url, [name for name in known if name not in (*_OBJECTS, "region")])
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise ConfigurationError(f"options of the SQS adapter: {problems}") from None


def _is_http(endpoint: str) -> bool:
    """Whether botocore may reach something there; what it cannot read, it takes for a service that does not answer."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return False
    legal = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return legal and not any(letter.isspace() for letter in endpoint)


def _parse(url: str, known: list[str]) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"the SQS URL has an illegal host or port; {ESCAPED}") from None
    if parts.scheme != "sqs":
        raise ConfigurationError("an SQS URL begins with sqs://, as sqs://us-east-1")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "an SQS URL holds no credentials: the AWS chain has them (environment, profile, role)"
        )
    if port is not None or parts.path.strip("/") or parts.fragment:
        raise ConfigurationError(
            "an SQS URL names a region, as sqs://us-east-1; another server is said by ?endpoint_url=http://..."
        )
    values: dict[str, Any] = {**read_query(parts.query, known, "the SQS URL")}
    if parts.netloc:
        values["region"] = parts.netloc
    return values


def _checked(options: dict[str, Any], known: list[str]) -> dict[str, Any]:
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"[broker.sqs] has an unknown option {name!r}; known are {', '.join(known)}"
            )
    return options
