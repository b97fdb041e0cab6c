"""The connection to Redis: one server, a cluster or what sentinels point to; and every error translated, once.

All commands go through `exchange`: one write, then the replies, on one connection of a pool. Nothing is sent twice:
a command is repeated only when the server said that it did not run it (unknown script, slot moved).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, cast

from redis import exceptions as redis_errors

from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
)
from messaging_redis.clients import Clients
from messaging_redis.scripts import with_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging_redis.clients import Pool, Use
    from messaging_redis.line import Argument, Command, Line
    from messaging_redis.scripts import Script
    from messaging_redis.settings import RedisSettings

_MISUSE = (
    "unknown command",
    "unknown subcommand",
    "wrong number of arguments",
    "syntax error",
    "NOPROTO",
    "CROSSSLOT",
)
"""How the text of an error begins that the same command always gets of this server."""
_DENIED = ("ACL failure in script", "The user executing the script")
"""How a command within a script is refused to its user: of Redis 7.2 and newer, and before."""
_FAULTS = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError, TimeoutError)
"""What redis-py raises when there is no connection, or no more."""
_NOT_RUN = (redis_errors.NoScriptError, redis_errors.MovedError)
_ROUNDS = 3
_MARGIN = 2.0
"""Seconds that a reply to a waiting read may be late before the connection counts as lost."""


class Interrupted(ConnectionFailed):
    """The connection broke after something was sent: what the server did with it is unknown."""


class Connection:
    """A pool of connections for commands, and one for reads that wait."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._clients: Clients | None = None
        self._closed = False
        self.failed: str | None = None
        """The last error of a connection, until the next success."""
        self.answered = -math.inf
        """When the server last answered anything, by the monotonic clock."""

    @property
    def native(self) -> Any:
        """The client of redis-py."""
        return self._opened.native

    def check_open(self) -> None:
        """Raises Closed after `close`."""
        if self._closed:
            raise Closed(f"the connection to Redis at {self.settings.address} was closed by this program")

    @property
    def _opened(self) -> Clients:
        clients = self._clients
        if clients is None:
            self.check_open()
            raise ConnectionFailed(f"the connection to Redis at {self.settings.address} is not open")
        return clients

    async def open(self) -> None:
        """Connect once. Raises ConnectionFailed or AuthenticationFailed."""
        self._closed = False
        clients = Clients(self.settings)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                await clients.open()
            self._clients = clients
            await self.call("", "PING")
        except BaseException as error:  # cancelled, too, it leaves no connection open
            self._clients = None
            with contextlib.suppress(Exception):  # the first error is the one to tell
                await clients.close()
            if isinstance(error, _FAULTS):
                raise self._unreachable(error, started) from error
            raise

    async def close(self) -> None:
        """Close all connections. A second call is a no-op."""
        self._closed = True
        clients, self._clients = self._clients, None
        if clients is not None:
            with contextlib.suppress(*_FAULTS):  # the server is away: nothing is left to close
                async with asyncio.timeout(2):
                    await clients.close()

    def shard(self, key: str) -> str:
        """What holds the key: commands of one shard may go in one exchange."""
        try:
            return self._opened.node_of(key)
        except _FAULTS as error:
            raise self._unreachable(error, time.monotonic()) from error

    async def call(self, key: str, *command: Argument) -> Any:
        """One command on the node that has `key`; its error is raised."""
        (reply,) = await self.exchange(key, (command,))
        if isinstance(reply, Exception):
            raise translate(reply, str(command[0]))
        return reply

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, use: Use = "commands"
    ) -> Any:
        """One script; all keys are of one topic. Its error is raised."""
        (reply,) = await self.exchange(keys[0], (script.call(keys, arguments),), use=use)
        if isinstance(reply, Exception):
            raise translate(reply, script.name)
        return reply

    async def wait_for(self, key: str, command: Command, wait: float, waiting: Callable[[int], None]) -> Any:
        """One read that may wait on the server for `wait` seconds: its reply or its error, not raised.

        `waiting` is told the id of the connection as the read begins: `unblock` ends it with that. Where the server
        does not tell it, the read ends by itself.
        """
        (reply,) = await self.exchange(key, (command,), wait=wait, waiting=waiting, rounds=0)
        if isinstance(reply, redis_errors.MovedError):
            await self._refresh()
        return reply

    async def unblock(self, key: str, connection: int) -> None:
        """End a read that waits, as if nothing had come: no entry can be lost between the server and here."""
        # What the server says is of no use: the read has an end of its own.
        _ = await self.exchange(key, (("CLIENT", "UNBLOCK", connection),))

    async def exchange(
        self,
        key: str,
        commands: Sequence[Command],
        *,
        wait: float | None = None,
        waiting: Callable[[int], None] | None = None,
        use: Use = "commands",
        rounds: int = _ROUNDS,
    ) -> list[Any]:
        """Send all, then read a reply for each: a value, or the error of that command, not raised.

        `wait`: the commands may wait that long on the server; such reads have connections of their own, and what is
        of another `use` has, too. What the server did not run is repeated in so many `rounds`. Raises ConnectionFailed
        when nothing was sent, Interrupted when the fate of what was sent is unknown, AuthenticationFailed; what a
        repeated command raises is its reply, for the others have run. Cancelling closes the one connection in use.
        """
        clients = self._opened
        if clients.stale:
            await self._refresh()
        patience = self.settings.socket_timeout if wait is None else wait + _MARGIN
        try:
            pool = clients.pool(key, use if wait is None else "reads")
        except _FAULTS as error:
            clients.stale = True
            raise self._unreachable(error, time.monotonic()) from error
        if not pool.slots.take_now(1):
            await pool.slots.take(1)
        try:
            line = pool.kept() or await self._connected(clients, pool)
            try:
                self.check_open()  # it may have been closed while this connection was made
                if waiting is not None and (id := await line.ask_id(patience)):
                    waiting(id)
                replies = await line.converse(commands, patience)
            except BaseException as error:  # cancelled, too: a reply may still come on this connection
                await pool.end(line)
                if isinstance(error, _FAULTS):
                    clients.stale = True
                    pool.distrust()
                    raise self._interrupted(error, patience) from error
                raise
            unblocked = (
                wait is not None
                and isinstance(replies[-1], Exception)
                and code_of(replies[-1]) == "UNBLOCKED"
            )
            if unblocked:
                # Nothing was read: the server has become a replica, or what was read is gone. The next read is told.
                replies[-1] = None
            if line.unfit:
                clients.stale = True
                pool.distrust()
            if self._closed or unblocked:
                await pool.end(line)
            elif not pool.keep(line):
                await pool.give_back(line)
        finally:
            pool.slots.give_back(1)
        self.failed, self.answered = None, time.monotonic()
        for reply in replies:
            if type(reply) is not bytes and isinstance(reply, _NOT_RUN) and rounds:
                await self._repeat(key, commands, replies, wait, use, rounds - 1)
                break
        return replies

    async def _repeat(
        self,
        key: str,
        commands: Sequence[Command],
        replies: list[Any],
        wait: float | None,
        use: Use,
        rounds: int,
    ) -> None:
        """Send again what the server did not run: its script is unknown there, or its slot has moved."""
        places = [at for at, reply in enumerate(replies) if isinstance(reply, _NOT_RUN)]
        again = [
            with_source(commands[at]) if isinstance(replies[at], redis_errors.NoScriptError) else commands[at]
            for at in places
        ]
        try:
            if any(isinstance(replies[at], redis_errors.MovedError) for at in places):
                await self._refresh()
            repeated = await self.exchange(key, again, wait=wait, use=use, rounds=rounds)
        except MessagingError as error:  # only of these: the others have run
            repeated = [error] * len(places)
        for at, reply in zip(places, repeated, strict=True):
            replies[at] = reply

    async def _connected(self, clients: Clients, pool: Pool) -> Line:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                return await pool.connect()
        except _FAULTS as error:
            clients.stale = True
            raise self._unreachable(error, started) from error

    async def _refresh(self) -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                await self._opened.refresh()
        except _FAULTS as error:
            raise self._unreachable(error, started) from error

    def _unreachable(self, error: BaseException, started: float) -> MessagingError:
        address = self.settings.address
        if _is_authentication(error):
            user = self.settings.username or "default"
            return AuthenticationFailed(
                f"Redis at {address} refused the credentials of user {user!r}: correct user and password"
            )
        if isinstance(error, redis_errors.NoPermissionError):
            return ConfigurationError(f"Redis at {address} lets the user not do what is needed: {error}")
        after = time.monotonic() - started
        self.failed = f"cannot reach Redis at {address} (gave up after {after:.1f} s): {_text(error)}"
        return ConnectionFailed(self.failed)

    def _interrupted(self, error: BaseException, patience: float) -> MessagingError:
        if _is_authentication(error):
            return AuthenticationFailed(
                f"Redis at {self.settings.address} no longer accepts the credentials: correct user and password"
            )
        detail = f"no reply within {patience:g} s" if isinstance(error, TimeoutError) else _text(error)
        self.failed = f"the connection to Redis at {self.settings.address} was lost: {detail}"
        return Interrupted(self.failed)


def translate(error: Exception, what: str) -> MessagingError:
    """An error reply as one of ours; `what` names the command. What is not known to last passes by itself (25)."""
    if isinstance(error, MessagingError):
        return error
    code, text = code_of(error), _text(error)
    if _is_authentication(error):
        return AuthenticationFailed(f"Redis refused {what}: {text}")
    if code == "NOPERM" or text.removeprefix("ERR ").startswith(_DENIED):
        return ConfigurationError(
            f"the ACL user may not run {what}: {text}. The documentation lists what to grant"
        )
    if code == "WRONGTYPE":
        return ConfigurationError(
            f"{what}: a key of ours holds something else; choose another prefix or namespace"
        )
    if text.removeprefix("ERR ").startswith(_MISUSE):
        return ConfigurationError(f"Redis does not know {what} as it is meant here: {text}")
    return ConnectionFailed(f"Redis refused {what} for now: {described(error)}")


_CODES: tuple[tuple[type[Exception], str], ...] = (
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.MovedError, "MOVED"),
    (redis_errors.AskError, "ASK"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
)


def code_of(error: object) -> str:
    """The code that an error reply begins with; redis-py takes it off where it has a class for it."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    words = str(error).split(None, 1)
    return words[0] if words and words[0].isupper() else ""


def described(error: Exception) -> str:
    """An error reply as the server wrote it."""
    code, text = code_of(error), _text(error)
    return text if text.startswith(code) else f"{code} {text}"


def _is_authentication(error: BaseException) -> bool:
    if isinstance(error, redis_errors.RedisClusterException) and error.__cause__ is not None:
        return _is_authentication(error.__cause__)
    return isinstance(
        error, redis_errors.AuthenticationError | redis_errors.AuthenticationWrongNumberOfArgsError
    ) and not isinstance(error, redis_errors.NoPermissionError)


def _text(error: BaseException) -> str:
    return str(error) or cast("Any", type(error)).__name__
