"""A client of the brokers: one attempt to connect per call, every call bounded, every error translated once."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
    MissingExtra,
    TopicNotFound,
)
from messaging.tls import client_context
from messaging_kafka import library
from messaging_kafka.client import Client
from messaging_kafka.library import Errors, KafkaError
from messaging_kafka.tokens import Tokens, TokenUnavailable
from messaging_kafka.topic_ids import LookAt

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator

    from messaging_kafka.settings import KafkaSettings

CLOSE_TIMEOUT = 2.0
ASKED = 3
"""Brokers that are asked, one after the other, what any of them can tell."""
COORDINATOR_PAUSE = 0.05
RETRY_PAUSE_MS = 500
"""Between aiokafka's own attempts to read the cluster's metadata."""

_AUTHENTICATION = (
    Errors.AuthenticationFailedError,
    Errors.AuthenticationMethodNotSupported,
    Errors.SaslAuthenticationFailed,
    Errors.UnsupportedSaslMechanismError,
    Errors.IllegalSaslStateError,
)
_FORBIDDEN = (
    Errors.TopicAuthorizationFailedError,
    Errors.GroupAuthorizationFailedError,
    Errors.ClusterAuthorizationFailedError,
)
_REFUSED = (
    Errors.InvalidTopicError,
    Errors.PolicyViolationError,
    Errors.InvalidConfigurationError,
    Errors.InvalidPartitionsError,
    Errors.InvalidSessionTimeoutError,
    Errors.InconsistentGroupProtocolError,
    Errors.InvalidGroupIdError,
    Errors.IncompatibleBrokerVersion,
)
_NO_COORDINATOR = (
    Errors.GroupCoordinatorNotAvailableError,
    Errors.NotCoordinatorForGroupError,
    Errors.NodeNotReadyError,
    Errors.KafkaConnectionError,
)
_QUESTIONS = (LookAt, library.Metadata, library.FindCoordinator, library.ApiVersions, library.InitProducerId)
"""What may be asked twice."""


def client_options(settings: KafkaSettings, tokens: Tokens | None = None) -> dict[str, Any]:
    """What every client of aiokafka is given; `tokens` where it logs in by OAUTHBEARER."""
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.hosts),
        "client_id": settings.client_id,
        "retry_backoff_ms": RETRY_PAUSE_MS,
    }
    protocol = "SSL" if settings.tls else "PLAINTEXT"
    if settings.tls:
        options["ssl_context"] = _ssl_context(settings)
    if settings.sasl is not None:
        protocol = f"SASL_{protocol}"
        options["sasl_mechanism"] = settings.sasl
        if settings.sasl == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = tokens
        else:
            options["sasl_plain_username"] = settings.user
            options["sasl_plain_password"] = settings.password and settings.password.get_secret_value()
    options["security_protocol"] = protocol
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    return client_context(
        f"Kafka at {settings.address}",
        ca=settings.ca,
        cert=settings.cert,
        key=settings.key,
        check_hostname=settings.check_hostname,
    )


class Link:
    """One client of aiokafka and the nodes that it knows: what lasts, while connections to these come and go."""

    def __init__(self, settings: KafkaSettings, *, patience: float | None = None) -> None:
        self.settings = settings
        self._patience = patience or settings.operation_timeout
        self._client: Any = None
        self._tokens: Tokens | None = None
        self._stale = False
        self._coordinators: dict[str, int] = {}
        self._silent: dict[int, float] = {}
        """Of brokers that owe an answer to what any can tell, when it was asked last (monotonic seconds)."""
        self._opening = asyncio.Lock()
        self._ending: set[asyncio.Future[None]] = set()
        """Connections on their way out: over TLS the broker has a word in it."""
        self._closed = False

    @property
    def client(self) -> Any:
        """Aiokafka's client; None while not connected."""
        return self._client

    async def open(self) -> None:
        """Connect once. Raises ConnectionFailed or AuthenticationFailed."""
        async with self._opening:
            if self._closed:
                raise Closed("the connection to Kafka is closed")
            if self._client is None or self._stale:
                await self._bootstrap()

    async def _bootstrap(self) -> None:
        started = time.monotonic()
        if self.settings.sasl == "OAUTHBEARER" and self._tokens is None:
            self._tokens = Tokens(self.settings)
        client = self._client or Client(client_options(self.settings, self._tokens), patience=self._patience)
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                await client.bootstrap()
            if self._tokens is not None and not client.cluster.brokers():
                # What was refused shows by the next request only, and aiokafka does not look there.
                raise Errors.SaslAuthenticationFailed("the token was refused")
        except (KafkaError, OSError, TimeoutError) as error:
            if self._client is None:
                await close_client(client)
            why = self._why(error)
            raise self._unreachable(why, time.monotonic() - started) from why
        except BaseException:  # cancelled, too, it leaves no client open
            if self._client is None:
                await close_client(client)
            raise
        self._client, self._stale = client, False
        self._coordinators.clear()

    def _why(self, error: Exception) -> Exception:
        """A broker only says that the token was refused which could not be had."""
        failure: Exception | None = None if self._tokens is None else self._tokens.failure
        return error if failure is None or isinstance(error, _AUTHENTICATION) else failure

    def _unreachable(self, error: Exception, after: float) -> MessagingError:
        if isinstance(error, (ConfigurationError, *_AUTHENTICATION)):
            return translate(error, "connecting", self.settings.address)
        if isinstance(error, TokenUnavailable):
            if self._client is not None:
                kind: type[MessagingError] = ConnectionFailed
            else:
                kind = ConfigurationError if error.misconfigured else AuthenticationFailed
            return kind(
                f"there is no token to log in with to Kafka at {self.settings.address}: {error.args[0]}"
            )
        return ConnectionFailed(
            f"cannot reach Kafka at {self.settings.address} (gave up after {after:.1f} s): {_text(error)}"
        )

    async def close(self) -> None:
        """Close the client, within seconds, broker there or not."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await close_client(client)
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSE_TIMEOUT)
        if self._tokens is not None:
            await self._tokens.close()

    async def send(
        self,
        request: Any,
        *,
        node: int | None = None,
        channel: Any = library.DEFAULT_CHANNEL,
        within: float | None = None,
    ) -> Any:
        """Send one request and return the response, undecoded errors included.

        Raises aiokafka's errors, for `translated`; a broker that gives no answer has its connection closed, so
        that the next call makes a new one.
        """
        if node is None:
            return await self._send_to_any(request, channel, within or self.settings.operation_timeout)
        return await self._send_to(node, request, channel, within)

    async def _send_to(self, node: int, request: Any, channel: Any, within: float | None) -> Any:
        if self._client is None or self._stale:
            await self.open()
        client: Any = self._client
        try:
            async with asyncio.timeout(within or self.settings.operation_timeout):
                return await client.send(node, request, group=channel)
        except TimeoutError:
            self._drop(client, node, channel)
            raise Errors.RequestTimedOutError("no answer in time") from None
        except KafkaError as error:
            self._stale = True
            if self._tokens is not None and isinstance(error, Errors.NodeNotReadyError):
                raise self._tokens.failure or error from error
            raise

    async def _send_to_any(self, request: Any, channel: Any, within: float) -> Any:
        """Ask a broker, and another where it does not answer; one that was sent an order is left its whole time."""
        tried: set[int] = set()
        until = time.monotonic() + within
        while True:
            if self._client is None or self._stale:
                await self.open()
            client: Any = self._client
            nodes = {broker.nodeId for broker in client.cluster.brokers()} - tried
            if not nodes:
                self._stale = True
                raise Errors.NoBrokersAvailable("no broker is known")
            node = min(nodes, key=lambda one: (self._silent.get(one, 0.0), random.random()))
            last = len(nodes) == 1 or len(tried) == ASKED - 1
            share = 1 if last or not isinstance(request, _QUESTIONS) else ASKED - len(tried)
            self._silent[node] = time.monotonic()  # until it answers: who is cancelled does not know better
            try:
                within = max(0.1, (until - time.monotonic()) / share)
                response = await self._send_to(node, request, channel, within)
            except KafkaError as error:
                unsent = isinstance(error, (Errors.NodeNotReadyError, Errors.StaleMetadata))
                if last or not (unsent or isinstance(request, _QUESTIONS)):
                    raise
                tried.add(node)
            else:
                self._silent.pop(node, None)
                return response

    def _drop(self, client: Any, node: int, channel: Any) -> None:
        self._stale = True
        connection = client._conns.get((node, channel))  # noqa: SLF001  there is no public way
        if connection is not None:
            self._end(connection)

    def drop_node(self, node: int, channel: Any) -> None:
        """Close the connection of a channel to a broker that hangs: what was sent on it has no answer."""
        if self._client is not None:
            self._drop(self._client, node, channel)

    def end_with(self, task: asyncio.Task[None]) -> None:
        """`close` waits for the end of this, which comes when the connections are closed at the latest."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def drop_channel(self, channel: Any) -> None:
        """Close the connections of a channel that is not used any more."""
        if self._client is not None:
            connections: dict[Any, Any] = self._client._conns  # noqa: SLF001  there is no public way
            for key in [key for key in connections if key[1] == channel]:
                self._end(connections.pop(key))

    def _end(self, connection: Any) -> None:
        closed: asyncio.Future[None] = connection.close()
        if not closed.done():
            self._ending.add(closed)
            closed.add_done_callback(self._ending.discard)

    async def to_coordinator(
        self, group: str, request: Any, *, channel: Any = library.DEFAULT_CHANNEL, within: float | None = None
    ) -> Any:
        """Send a request about a group to the broker that coordinates it."""
        node = self._coordinators.get(group)
        if node is None:
            node = self._coordinators[group] = await self._find_coordinator(group)
        try:
            return await self.send(request, node=node, channel=channel, within=within)
        except KafkaError:
            self.forget_coordinator(group)
            raise

    async def _find_coordinator(self, group: str) -> int:
        """The broker makes its record of groups when the first one is asked for: that takes a moment."""
        until = time.monotonic() + self.settings.operation_timeout
        while True:
            response = await self.send(library.FindCoordinator(group, 0))
            try:
                check(response.error_code)
            except Errors.GroupCoordinatorNotAvailableError:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(COORDINATOR_PAUSE)
            else:
                return int(response.coordinator_id)

    def forget_coordinator(self, group: str, error: object = None) -> None:
        """The group may have another coordinator: it is looked for again."""
        if error is None or isinstance(error, _NO_COORDINATOR):
            self._coordinators.pop(group, None)

    @contextmanager
    def translated(self, what: str) -> Generator[None]:
        """Raise our errors in place of aiokafka's; `what` says what was tried."""
        try:
            yield
        except KafkaError as error:
            raise translate(error, what, self.settings.address) from error


async def close_client(client: Any) -> None:
    """Aiokafka waits for its connections to be closed, which a hung broker delays: not for long."""
    await bounded(client.close(), CLOSE_TIMEOUT)


async def bounded(closing: Any, within: float) -> None:
    """Run aiokafka's way of closing something for so long at most.

    It may hang while the broker is down, or leak the cancellation of one of its own tasks; in a task of its own
    neither reaches us. What our caller is cancelled for is raised when the task has ended.
    """
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.wait((task,), timeout=within)
    finally:
        task.cancel()
        await asyncio.wait((task,), timeout=within)
        if task.done() and not task.cancelled():
            task.exception()


def check(code: int) -> None:
    """Raise the error of aiokafka that a response's code stands for."""
    error = library.failure_of(code)
    if error is not None:
        raise error


def translate(error: Exception, what: str, address: str) -> MessagingError:
    """An error of aiokafka as one of ours."""
    if isinstance(error, MessagingError):
        return error
    text = _text(error)
    if isinstance(error, _AUTHENTICATION):
        return AuthenticationFailed(f"Kafka at {address} refused the credentials: {text}")
    if isinstance(error, _FORBIDDEN):
        return ConfigurationError(
            f"{what}: Kafka at {address} does not allow it: {text}. The documentation lists the ACLs to grant"
        )
    if isinstance(error, Errors.UnsupportedCodecError):
        return MissingExtra(
            f"{what}: Kafka at {address} has compressed messages that cannot be read here: {text}. "
            f"Install cramjam: pip install 'messaging-ports[kafka]'"
        )
    if isinstance(error, Errors.UnknownTopicOrPartitionError):
        return TopicNotFound(f"{what}: Kafka at {address} has no such topic or partition. Declare it first")
    if isinstance(error, _REFUSED):
        return ConfigurationError(f"{what}: Kafka at {address} refused it: {text}")
    return ConnectionFailed(f"{what}: Kafka at {address} did not do it: {text}")


def _text(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    # aiokafka only says that a connection closed; the alert of TLS that closed it is behind that.
    return f"{text}: {error.__cause__}" if isinstance(error.__cause__, OSError) else text
