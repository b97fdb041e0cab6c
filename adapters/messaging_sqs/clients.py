"""The clients of boto3: made once, in a thread, with settings that fit how this adapter uses them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from messaging.errors import AuthenticationFailed, ConfigurationError
from messaging.tls import client_context
from messaging_sqs import answers
from messaging_sqs.forms import write_form
from messaging_sqs.logs import withhold_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from messaging_sqs.settings import SQSSettings

# boto3 has no types: imported by name, so that all of it is `Any` here and nowhere else.
boto3: Any = import_module("boto3")
_config: Any = import_module("botocore.config")
_credentials: Any = import_module("botocore.credentials")
_session: Any = import_module("botocore.session")
botocore_errors: Any = import_module("botocore.exceptions")

ATTEMPTS = 3
"""Of one call, throttling and lost connections included. A FIFO resend has the same deduplication id."""
_POLL_CONNECTIONS = 256
"""More polls than that open a connection each time."""


@dataclass(frozen=True, slots=True)
class Clients:
    """One client for each use: a receive waits longer than any other call; it and `sends` are never repeated by boto3,
    because what they have done is unknown.
    """

    region: str
    endpoint: str
    """Of SQS, as the URL, the environment, the profile or a client of one's own has it."""
    is_aws: bool
    """Whether AWS has that name; any other server knows less."""
    partition: str
    """`aws`, `aws-cn`, `aws-us-gov`: the second part of an ARN."""
    sqs: Any
    polls: Any
    sns: Any
    sts: Any
    sends: Mapping[str, Any]
    """For what no deduplication guards: `sqs` and `sns`, without repeats of their own."""
    renewing: bool
    """Whether the credentials end, and are renewed before."""


def make_clients(settings: SQSSettings) -> Clients:
    """Read the chain of credentials and make the clients; blocks. No call to a service, except for a role's
    credentials when they are first needed.

    Raises AuthenticationFailed when the chain has no credentials, ConfigurationError without a region or when
    the file of certificate authorities cannot be used.
    """
    withhold_credentials()
    if settings.ca is not None:
        # botocore reads the file at each connection, where one that cannot be read looks like a lost service.
        client_context(f"SQS at {settings.address}", ca=settings.ca)
    own = [client for client in (settings.sqs_client, settings.sns_client) if client is not None]
    session, region = _session_in_region(settings, own)

    names = _names_of_aws()
    # What is made beside a client of one's own speaks to the same server.
    beside = next((url for client in own if not names(url := client.meta.endpoint_url)), None)

    agent: str | None = None

    def make(service: str, endpoint: str | None, wait: float = 0.0, attempts: int = ATTEMPTS) -> Any:
        client = session.client(
            service,
            region_name=region,
            endpoint_url=endpoint or settings.endpoint_url or beside,
            verify=settings.ca,
            config=_configuration(settings, wait=wait, attempts=attempts, agent=agent),
        )
        if service == "sns":
            client.meta.events.register("before-call.sns.PublishBatch", write_form)
        client.meta.events.register("before-parse.sqs", answers.check, unique_id=answers.CHECK)
        return client

    sts = make("sts", settings.sts_endpoint_url)
    agent = _agent(sts.meta.config)
    sqs = settings.sqs_client or make("sqs", settings.sqs_endpoint_url)
    sqs.meta.events.register("before-parse.sqs", answers.check, unique_id=answers.CHECK)
    return Clients(
        region=region,
        endpoint=sqs.meta.endpoint_url,
        is_aws=names(sqs.meta.endpoint_url),
        partition=_partition(session, region),
        sqs=sqs,
        polls=settings.sqs_client
        or make("sqs", settings.sqs_endpoint_url, wait=settings.poll_wait, attempts=1),
        sns=settings.sns_client or make("sns", settings.sns_endpoint_url),
        sts=sts,
        sends={
            "sqs": settings.sqs_client or make("sqs", settings.sqs_endpoint_url, attempts=1),
            "sns": settings.sns_client or make("sns", settings.sns_endpoint_url, attempts=1),
        },
        renewing=isinstance(session.get_credentials(), _credentials.RefreshableCredentials),
    )


def _session_in_region(settings: SQSSettings, own: Sequence[Any]) -> tuple[Any, str]:
    """A session with the credentials to use, and the region that it and the clients of one's own are for."""
    session = settings.session or (_session_of(own[0]) if own else _new_session(settings))
    region = settings.region or session.region_name or os.environ.get("AWS_REGION")
    if not region:
        raise ConfigurationError(
            "no region: name it in the URL, as sqs://eu-central-1, or set AWS_DEFAULT_REGION, or one in the profile"
        )
    for client in own:
        if client.meta.region_name != region:
            raise ConfigurationError(
                f"a client of one's own is for region {client.meta.region_name}, the rest for {region}: name one region"
            )
    if settings.sqs_client is None and session.get_credentials() is None:
        raise AuthenticationFailed(
            "no AWS credentials were found by the AWS chain (environment, profile, web identity, container, "
            "instance): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile, or give the process a role"
        )
    if settings.role is not None:
        session = _assumed(settings, session, region)
    return session, region


def _names_of_aws() -> Callable[[str], bool]:
    """Whether a URL is of AWS: its regions' own endpoints, and those in a network of the customer."""
    partitions = _session.Session().get_data("partitions")["partitions"]
    endings = tuple(
        f".{partition['outputs'][kind]}"
        for partition in partitions
        for kind in ("dnsSuffix", "dualStackDnsSuffix")
    )
    return lambda url: (urlsplit(url).hostname or "").endswith(endings)


def _partition(session: Any, region: str) -> str:
    """Servers that are not AWS have regions of any name."""
    try:
        return str(session.get_partition_for_region(region))
    except botocore_errors.UnknownRegionError:
        return "aws"


def _session_of(client: Any) -> Any:
    """A session with the credentials and the region of a client; without them it asks the AWS chain."""
    inner = _session.Session()
    # There is no public way to ask a client for its credentials.
    inner._credentials = getattr(getattr(client, "_request_signer", None), "_credentials", None)  # noqa: SLF001
    return boto3.Session(botocore_session=inner, region_name=client.meta.region_name)


def _new_session(settings: SQSSettings) -> Any:
    try:
        return boto3.Session(profile_name=settings.profile, region_name=settings.region)
    except botocore_errors.ProfileNotFound as error:
        raise ConfigurationError(f"AWS profile {settings.profile!r} was not found: {error}") from None


def _configuration(settings: SQSSettings, *, wait: float, attempts: int, agent: str | None) -> Any:
    return _config.Config(
        user_agent=agent,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.operation_timeout + wait,
        max_pool_connections=_POLL_CONNECTIONS if wait else settings.threads,
        # What is sent is checked here already, where an error can name the message.
        parameter_validation=False,
        retries={"mode": "standard", "total_max_attempts": attempts},
        tcp_keepalive=True,
    )


def _agent(config: Any) -> str:
    """Who sends the requests, as botocore says it: left to itself, it puts that together anew for each, twice."""
    agent, application = config.user_agent, config.user_agent_appid
    return f"{agent} app/{application}" if application else str(agent)


def _assumed(settings: SQSSettings, session: Any, region: str) -> Any:
    """A session with the credentials of the role, which are renewed when they are about to end."""

    def client(*args: Any, **options: Any) -> Any:
        options.setdefault("endpoint_url", settings.sts_endpoint_url or settings.endpoint_url)
        options.setdefault("verify", settings.ca)
        options["region_name"] = region
        return session.client(*args, **options)

    fetcher = _credentials.AssumeRoleCredentialFetcher(
        client_creator=client,
        source_credentials=session.get_credentials(),
        role_arn=settings.role,
        extra_args={"RoleSessionName": settings.prefix},
    )
    inner = _session.Session()
    # There is no public way to give a session credentials that renew themselves.
    inner._credentials = _credentials.DeferredRefreshableCredentials(  # noqa: SLF001
        refresh_using=fetcher.fetch_credentials, method="assume-role"
    )
    return boto3.Session(botocore_session=inner, region_name=region)
