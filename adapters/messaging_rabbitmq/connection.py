"""Plain AMQP connections: opened on demand, one attempt a call, never reconnected behind anybody's back.

aiormq's exceptions are translated here, once. aiormq tells of a lost heartbeat and of its own close by a
CancelledError in the waiting task, and loses a real cancellation where the broker closes the channel in the same
moment; `translated` tells the one from the other by the task's own count.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from math import inf
from random import randrange
from typing import TYPE_CHECKING, Any, cast

import aiormq
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelInvalidStateError,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from messaging.adapter import Lease
from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
)
from messaging.shielded import shielded
from messaging.tls import client_context
from messaging_rabbitmq.calls import Calls
from messaging_rabbitmq.frames import table_limit
from messaging_rabbitmq.wire import Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Generator

    from aiormq.abc import AbstractChannel
    from pamqp.commands import Connection

    from messaging_rabbitmq.settings import RabbitMQSettings

logger = logging.getLogger("messaging")

_ACK_TIMEOUT = re.compile(r"delivery acknowledgement on channel \d+ timed out\. Timeout value used: (\d+) ms")
_FAULTS = (AMQPError, ChannelInvalidStateError, OSError, RuntimeError)
CLOSE_TIMEOUT = 2.0
MADE_FOR = "7."
"""Versions of aiormq whose channels are known."""
KNOWN = ("number", "max_content_size")
"""What is used of them, and promised by nobody."""
NOT_ALLOWED = 530
"""Reply code of a virtual host that is absent or not for this user, and of limits of connections."""


class Life:
    """For how long the broker certainly leaves us what this connection was given (9).

    It gives it to others two heartbeats after our last sign of life at the earliest, and we show one in every half
    heartbeat. Each of its own moves the deadline, but never one that has passed: a member that stood still finds what
    the broker sent before it gave up, and must not take that for life.
    """

    def __init__(self, heartbeat: int, expired: Callable[[], None]) -> None:
        self._bound = 1.9 * heartbeat - max(1, heartbeat // 2)
        self._expired = expired
        self.lease = Lease(time.monotonic() + self._bound)

    def sign(self) -> None:
        """The broker has sent something."""
        now = time.monotonic()
        if now < self.lease.deadline:
            self.lease.deadline = now + self._bound
        else:
            self._expired()


class PlainConnection(aiormq.Connection):
    """aiormq's connection, with a longer write queue, and half its patience for a silent peer."""

    FRAME_BUFFER_SIZE = 1024
    HEARTBEAT_GRACE_MULTIPLIER = 2

    def __init__(self, url: URL, wire: Wire, calls: Calls) -> None:
        super().__init__(url, transport_factory=wire)
        self.wire = wire
        self.calls = calls


@lru_cache(maxsize=1)
def is_known_version() -> bool:
    """Whether the installed aiormq is one whose channels are known."""
    return version("aiormq").startswith(MADE_FOR)


def is_known(channel: AbstractChannel) -> bool:
    """Whether it may be used beside aiormq."""
    return is_known_version() and all(hasattr(channel, name) for name in KNOWN)


def wire_of(channel: AbstractChannel) -> Wire:
    """The socket that this channel uses."""
    return _connection_of(channel).wire


def _connection_of(channel: AbstractChannel) -> PlainConnection:
    connection = cast("Any", channel).connection
    assert isinstance(connection, PlainConnection)
    return connection


@contextmanager
def translated(doing: str, address: str) -> Generator[None]:
    """Turn aiormq's exceptions into ours; what a single call expects is caught inside."""
    task = asyncio.current_task()
    cancellations = task.cancelling() if task else 0

    def cancelled() -> bool:
        return task is not None and task.cancelling() > cancellations

    try:
        yield
        # A channel that the broker closes in the moment of a cancellation answers with the broker's reason alone.
        if cancelled():
            raise asyncio.CancelledError
    except MessagingError as error:
        if cancelled():
            raise asyncio.CancelledError from error
        raise
    except asyncio.CancelledError as error:
        if task is None or cancelled():
            raise
        raise ConnectionFailed(f"the connection to RabbitMQ at {address} was lost while {doing}") from error
    except Exception as error:
        # aiormq gives a plain Exception to who waits when a connection breaks without a reason.
        if not isinstance(error, _FAULTS) and type(error) is not Exception:
            raise
        if cancelled():
            raise asyncio.CancelledError from error
        if isinstance(error, ChannelAccessRefused):
            raise ConfigurationError(
                f"RabbitMQ at {address} does not permit {doing}: {error}. Give the user the permission."
            ) from error
        raise ConnectionFailed(
            f"RabbitMQ at {address} failed while {doing}: {type(error).__name__}: {error}"
        ) from error


def when_closed(connection_or_channel: Any, callback: Callable[[], object]) -> None:
    """Call back when it is closed by anybody, or broken: `is_closed` alone is seen only when asked."""

    def closed(_: asyncio.Future[Any]) -> None:
        callback()

    connection_or_channel.closing.add_done_callback(closed)


def why_closed(channel: AbstractChannel) -> str:
    """In the broker's words, where it has said why, and with what to do where that is known."""
    closing: asyncio.Future[Any] = cast("Any", channel).closing
    error = closing.exception() if closing.done() and not closing.cancelled() else None
    text = str(error.args[-1] or "") if isinstance(error, ChannelClosed) and error.args else ""
    if not text:
        return "its channel was closed"
    reason = f"its channel was closed by the broker: {text}"
    if "delivery acknowledgement" in text and "timed out" in text:
        reason += (
            ". A handler takes longer than the broker's consumer_timeout: raise that timeout at the broker, or let the "
            "handler take less"
        )
    return reason


def ack_timeout_in(reason: str) -> float:
    """The broker's `consumer_timeout` in seconds, where a channel was closed because of it; inf elsewhere."""
    told = _ACK_TIMEOUT.search(reason)
    return int(told[1]) / 1000 if told else inf


class Link:
    """What lasts for one purpose, while the connections below it come and go. Publishing and consuming have one each:
    a broker short of memory stops reading from connections that publish, and what is consumed must still be settled.
    """

    def __init__(self, settings: RabbitMQSettings, purpose: str) -> None:
        self.address = settings.address
        self._settings = settings
        self._purpose = purpose
        self._current: PlainConnection | None = None
        self.lease = Lease()
        """Of what the newest connection was given."""
        self.table_limit = table_limit(0)
        """Bytes of a message's headers, as the broker said when it was last reached."""
        self._transport: asyncio.Transport | None = None
        self._attempt: asyncio.Task[PlainConnection] | None = None
        self._turn = randrange(len(settings.hosts))
        """Which host is tried first: programs spread over the nodes."""
        self._context: ssl.SSLContext | None = None
        self._calls = Calls()
        self._closed = False
        self._reached = False
        self.on_loss: set[Callable[[str], None]] = set()

    @property
    def current(self) -> aiormq.Connection | None:
        """The connection, if there is one now."""
        return self._current

    def channel_limit(self, most: int) -> int:
        """How many channels may be open for one purpose: a broker that is asked for too many ends the connection."""
        connection = self._current
        allowed = connection.connection_tune.channel_max if connection is not None else 0
        # 0 is no limit. Who uses the raw client has the other half.
        return min(most, max(1, allowed // 2)) if allowed else most

    @property
    def blocked(self) -> bool:
        """Whether the broker has told that it reads nothing from this connection now (`connection.blocked`)."""
        if self._current is None:
            return False
        ready = self._current.ready()
        try:
            ready.send(None)
        except StopIteration:
            return False
        ready.close()  # it would wait until the broker reads again
        return True

    def check_open(self) -> None:
        """Raises Closed after `close`."""
        if self._closed:
            raise Closed("the RabbitMQ adapter is closed")

    async def connection(self) -> PlainConnection:
        """The connection, after at most one attempt at each host to open it, which all who wait share."""
        self.check_open()
        if self._current is not None:
            return self._current
        if self._attempt is None:
            self._attempt = asyncio.create_task(self._connect(), name=f"rabbitmq-connect-{self._purpose}")
            self._attempt.add_done_callback(self._attempt_ended)
        return await shielded(self._attempt)

    def _attempt_ended(self, _attempt: asyncio.Task[PlainConnection]) -> None:
        self._attempt = None

    async def _connect(self) -> PlainConnection:
        hosts, started = self._settings.hosts, time.monotonic()
        for _ in hosts[1:]:
            try:
                return await self._connect_to(*hosts[self._turn % len(hosts)], started)
            except AuthenticationFailed:
                raise
            except ConnectionFailed:
                self._turn += 1
        return await self._connect_to(*hosts[self._turn % len(hosts)], started)

    async def _connect_to(self, host: str, port: int, started: float) -> PlainConnection:
        settings = self._settings
        if settings.tls and self._context is None:
            self._context = await asyncio.to_thread(_tls_context, settings)
        wire = Wire(self._context)
        url = URL.build(
            scheme="amqps" if settings.tls else "amqp",
            host=host,
            port=port,
            user=settings.user,
            password=settings.password.get_secret_value(),
            path="/",
            query={"heartbeat": str(settings.heartbeat), "name": f"messaging {self._purpose}"},
        )
        connection = PlainConnection(url, wire, self._calls)
        connection.vhost = settings.virtual_host
        try:
            with translated("connecting", self.address):
                async with asyncio.timeout(settings.connect_timeout):
                    try:
                        await cast("Any", connection).connect()
                    except (AuthenticationError, ProbableAuthenticationError) as error:
                        raise AuthenticationFailed(
                            f"RabbitMQ at {self.address} refused the credentials of user {settings.user!r}"
                        ) from error
                    except (ConnectionClosed, InvalidFrameError) as error:
                        raise _refused(wire.farewell(), error, settings, again=self._reached) from error
        except BaseException as error:  # cancelled, too, it leaves no socket open
            if wire.transport is not None:
                wire.transport.abort()
            refused = isinstance(error.__cause__, ConnectionClosed | InvalidFrameError)
            if type(error) is not ConnectionFailed or refused:
                raise
            waited = time.monotonic() - started
            cause = "no answer" if isinstance(error.__cause__, TimeoutError) else error.__cause__ or error
            raise ConnectionFailed(
                f"RabbitMQ at {self.address} could not be reached within {waited:.1f} s: {cause}"
            ) from error
        self._transport = wire.transport
        self._current = connection
        self._reached = True
        self.table_limit = table_limit(connection.connection_tune.frame_max or 0)
        assert wire.transport is not None
        # Aborted, it gives back what was dropped because its lease had ended.
        life = Life(settings.heartbeat, wire.transport.abort)
        self.lease = life.lease
        wire.tell(life.sign)
        when_closed(connection, lambda: self._lost(connection))
        return connection

    def _lost(self, connection: PlainConnection) -> None:
        if self._current is not connection:
            return
        self._current = None
        self._turn += 1
        if self._closed:
            return
        reason = f"the connection to RabbitMQ at {self.address} was lost"
        logger.warning(
            "The %s connection to RabbitMQ at %s was lost",
            self._purpose,
            self.address,
            extra={"broker": self.address, "purpose": self._purpose},
        )
        for callback in tuple(self.on_loss):
            callback(reason)

    async def channel(self, *, confirms: bool = False, buffer: int = 64) -> AbstractChannel:
        """A new channel."""
        with translated("opening a channel", self.address):
            connection = await self.connection()
            opening = self._calls.start(self._open(connection, confirms=confirms, buffer=buffer))
            try:
                async with asyncio.timeout(self._settings.operation_timeout):
                    return await shielded(opening)
            except BaseException:
                opening.add_done_callback(_unwanted)
                raise

    async def _open(self, connection: PlainConnection, *, confirms: bool, buffer: int) -> AbstractChannel:
        channel = await connection.channel(publisher_confirms=confirms, frame_buffer_size=buffer)
        self._calls.keep_whole(channel)
        return channel

    @asynccontextmanager
    async def throwaway(self, doing: str) -> AsyncGenerator[AbstractChannel]:
        """A channel for declarations: the broker closes it on the first that fails. Bounded in time.

        A call that is given up is finished without the caller.
        """
        channel = await self.channel()
        try:
            with translated(doing, self.address):
                async with asyncio.timeout(self._settings.operation_timeout):
                    yield channel
        except BaseException:
            abandon(channel)
            raise
        await close_channel(channel)

    def abort(self) -> None:
        """Cut the socket, as a broken network would."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close within a few seconds, broker there or not."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        connection, self._current = self._current, None
        if connection is not None:
            await self._close(connection)
        await self._calls.end(CLOSE_TIMEOUT)

    async def _close(self, connection: PlainConnection) -> None:
        closing = asyncio.ensure_future(connection.close(ConnectionClosed(200, "closed by this program")))
        try:
            _, unfinished = await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
        finally:
            if not closing.done():
                self.abort()
        if unfinished:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
            closing.cancel()
        elif not closing.cancelled():
            closing.exception()  # it is closed either way


async def close_channel(channel: AbstractChannel) -> None:
    """Close it, if it is still open; unacknowledged messages go back to their queue in order."""
    if channel.is_closed:
        return
    # One that cannot be closed goes with its connection.
    with suppress(MessagingError), translated("closing a channel", ""):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await shielded(_start_closing(channel))


def abandon(channel: AbstractChannel) -> None:
    """Have it closed, if it is still open. Who gives up does not wait for a broker that may not answer."""
    if not channel.is_closed:
        _ = _start_closing(channel)


def _start_closing(channel: AbstractChannel) -> asyncio.Task[None]:
    return _connection_of(channel).calls.start(channel.close())


def _unwanted(opening: asyncio.Task[AbstractChannel]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        abandon(opening.result())


def _refused(
    close: Connection.Close | None, error: Exception, settings: RabbitMQSettings, *, again: bool
) -> MessagingError:
    """Fatal is only what is known to be (25); a limit of connections is met by who connects again too early.

    A virtual host that was there may come back: it is imported anew after its broker. At the first connection its
    name is wrong.
    """
    code, text = (close.reply_code, close.reply_text) if close else (None, str(error))
    host = settings.virtual_host
    if code == NOT_ALLOWED and text.endswith("not found"):
        missing = f"RabbitMQ at {settings.address} has no virtual host {host!r}: create it"
        return ConnectionFailed(missing) if again else ConfigurationError(missing)
    # A limit, and a backend that does not answer, are told behind these words.
    if code == NOT_ALLOWED and text.endswith(f"access to vhost '{host}' refused for user '{settings.user}'"):
        return AuthenticationFailed(
            f"RabbitMQ at {settings.address} refuses user {settings.user!r} the virtual host {host!r}: {text}"
        )
    return ConnectionFailed(f"RabbitMQ at {settings.address} closed the connection: {text}")


def _tls_context(settings: RabbitMQSettings) -> ssl.SSLContext:
    return client_context(
        f"RabbitMQ at {settings.address}",
        ca=settings.ca,
        cert=settings.cert,
        key=settings.key,
        check_hostname=settings.check_hostname,
    )
