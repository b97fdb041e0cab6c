"""Handle each idempotency key once (23)."""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Self

from messaging.binding import StoreState
from messaging.clock import Clock, Timer, check_cancelled, sleep, timeout
from messaging.current import still_leased
from messaging.errors import ConnectionFailed, IdempotencyConflict, MessagingError
from messaging.message import Ack, Reject, Release
from messaging.middleware.expiry import has_expired
from messaging.store import BeginResult, Completed, IdempotencyStore, InProgress
from messaging.texts import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from messaging.message import Delivery, Handler, Message, Middleware, Outcome

logger = logging.getLogger("messaging")

_BEATS = 3  # how often within one lease it is extended
_PATIENCE = 5.0  # seconds that a call to the store may take once the handler is over
_HUNG = 2  # leases of a key after which nobody waits for the store to give it
_AWAY = (MessagingError, OSError)
_STORE_AWAY = 1.0  # seconds until a message is tried again whose key the store could not take
_UNANSWERED = 1000  # keys whose tokens are kept; the others wait for the lease that the store may have given


def idempotent(
    store: IdempotencyStore,
    *,
    scope: str,
    key: Callable[[Message], str] | None = None,
    lease: float,
    ttl: float,
    clock: Clock,
    owner: str = "",
    state: StoreState | None = None,
    encode_reply: Callable[[Any], bytes | None] | None = None,
    decode_reply: Callable[[bytes], Any] | None = None,
) -> Middleware:
    """Run the handler unless its key was handled in the last `ttl` seconds; then Ack, with the stored reply.

    The key is the message's id, or `key(message)`, within `scope` (namespace, topic and group). While another
    member has it, the message is released until the rest of that member's lease has passed; ours is extended
    while the handler runs, and not used where it, the delivery's lease or the message's time was over when the
    store answered. Two bodies under one key are rejected. Anything but an Ack clears the key, cancellation too.
    A key whose `begin` got no answer is asked for once more at once, and when the message comes again: the store knows
    by the token that the lease it may have given is ours. While the store does not answer, messages are released
    uncounted: it is no fault of theirs. Any other error of it is a failure of the message. When it goes away after the
    handler, the outcome stands.

    `lease` and `ttl` are seconds; `owner` names this member in the log; `state` is told how the store answers.
    """
    state = StoreState() if state is None else state
    tokens = _Tokens()

    def middleware(next: Handler) -> Handler:
        async def handle(delivery: Delivery[Any]) -> Outcome:
            message = delivery.message
            name = f"{scope}:{message.id if key is None else _checked_key(key(message))}"
            asked = clock.monotonic()
            try:
                begun = await _begin(store, name, message, tokens, lease=lease, clock=clock, state=state)
            except IdempotencyConflict as conflict:
                rejected = Reject(str(conflict), cause="exception")
                rejected.__cause__ = conflict
                return rejected
            except _AWAY as error:
                if state.error is None:
                    _tell(delivery, owner, "the idempotency store is away, messages are released", error)
                state.error, state.at = error, clock.monotonic()
                return Release(after=_STORE_AWAY)
            state.error = None
            if isinstance(begun, InProgress):
                return Release(after=max(begun.remaining, 0.0))
            if isinstance(begun, Completed):
                stored = begun.result
                return Ack(None if stored is None or decode_reply is None else decode_reply(stored))
            entry = _Entry(store, clock, delivery, owner, name, begun.fence, lease, asked)
            # The answer came so late that another may have the key or the delivery (9), or that it has expired (6).
            if clock.monotonic() >= asked + lease or not still_leased.get()() or has_expired(message, clock):
                await entry.clear()
                return Release()
            async with entry:
                result: bytes | None = None
                try:
                    outcome = await next(delivery)
                    if isinstance(outcome, Ack) and outcome.reply is not None and encode_reply is not None:
                        result = encode_reply(outcome.reply)
                except BaseException:  # a cancellation too: the next one to have it may begin at once
                    await entry.clear()
                    raise
                if isinstance(outcome, Ack):
                    await entry.complete(result, ttl)
                else:
                    await entry.clear()
                return outcome

        return handle

    return middleware


class _Tokens:
    """Who asks for which key. A token is kept only while nothing has ever run under it: for an answer that was lost."""

    def __init__(self) -> None:
        self._process = token_hex(8)
        self._numbers = count()
        self._unanswered: dict[str, str] = {}

    def take(self, name: str) -> str:
        """That of the last question for this key if it got no answer, else a new one: no two ask with the same."""
        return self._unanswered.pop(name, None) or f"{self._process}-{next(self._numbers)}"

    def keep(self, name: str, token: str) -> None:
        """The question got no answer."""
        self._unanswered[name] = token
        if len(self._unanswered) > _UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]


async def _begin(
    store: IdempotencyStore,
    name: str,
    message: Message,
    tokens: _Tokens,
    *,
    lease: float,
    clock: Clock,
    state: StoreState,
) -> BeginResult:
    """Ask for the key. No store is waited for without an end: the lease of what it says later is long over."""
    digest, token = sha256(message.body).hexdigest(), tokens.take(name)
    state.asked(clock.monotonic())
    try:
        async with timeout(clock, _HUNG * lease):
            try:
                return await store.begin(name, digest=digest, lease=lease, token=token)
            except ConnectionFailed:  # it may have given the key to us, and be there again
                return await store.begin(name, digest=digest, lease=lease, token=token)
    except BaseException as error:
        if not isinstance(error, IdempotencyConflict):
            tokens.keep(name, token)
        if isinstance(error, TimeoutError) and not str(error):
            raise ConnectionFailed("it did not answer in time") from error
        raise
    finally:
        state.answered(clock.monotonic())


def _checked_key(value: object) -> str:
    """What the key function returned: one key for all that has none would take them for one message."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"the idempotency key of a message is a str that is not empty, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the idempotency key {value!r} is no text that UTF-8 can carry") from None
    return plain(value)


class _Entry:
    """One key that is in progress, and ours: inside `async with`, its lease is extended.

    A handler that ends before the first extension costs no task.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        clock: Clock,
        delivery: Delivery[Any],
        owner: str,
        name: str,
        fence: int,
        lease: float,
        asked: float,
    ) -> None:
        """`asked` is when the store was asked for the key: from then on the lease may run."""
        self._store = store
        self._clock = clock
        self._delivery = delivery
        self._owner = owner
        self._name = name
        self._fence = fence
        self._lease = lease
        self._asked = asked
        self._timer: Timer | None = None
        self._heart: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        due = self._asked + self._lease / _BEATS
        self._timer = self._clock.call_later(max(0.0, due - self._clock.monotonic()), self._start_beating)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._heart is not None:
            self._heart.cancel()
            await _ended(self._heart)

    async def complete(self, result: bytes | None, ttl: float) -> None:
        """Store that the key is done. The handler did its work: if this goes wrong, its outcome stands."""

        async def complete() -> None:
            if not await self._store.complete(self._name, self._fence, result=result, ttl=ttl):
                self._warn(
                    "another member took over the idempotency key while the handler ran: it may run twice"
                )

        await self._last_call(complete(), "completed")

    async def clear(self) -> None:
        """Make the key absent, so that the next attempt may take it at once."""
        await self._last_call(self._store.clear(self._name, self._fence), "cleared")

    async def _last_call(self, call: Awaitable[None], done: str) -> None:
        """Let a call to the store end, bounded, also when this task is cancelled meanwhile."""

        async def bounded() -> None:
            try:
                async with timeout(self._clock, _PATIENCE):
                    await call
            except Exception as error:
                self._tell(f"the idempotency key was not {done}, it stays until its lease ends", error)

        await _ended(asyncio.get_running_loop().create_task(bounded()))

    def _start_beating(self) -> None:
        self._heart = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            try:
                ours = await self._store.extend(self._name, self._fence, lease=self._lease)
            except Exception as error:
                # The next beat tries again; if the lease ends meanwhile, the fence protects the key.
                self._tell("the lease of the idempotency key was not extended", error)
            else:
                if not ours:
                    return
            check_cancelled()
            await sleep(self._clock, self._lease / _BEATS)

    def _tell(self, text: str, error: Exception) -> None:
        _tell(self._delivery, self._owner, text, error)

    def _warn(self, text: str) -> None:
        _log_about(self._delivery, self._owner, text)


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait until the task has ended; a cancellation of the waiting one is raised only then."""
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


def _tell(delivery: Delivery[Any], owner: str, text: str, error: Exception) -> None:
    """What went wrong at the store; whatever a store that is away does not raise is a defect, and shown as one."""
    away = isinstance(error, _AWAY)
    _log_about(
        delivery,
        owner,
        f"{text}: {error!r}",
        level=logging.WARNING if away else logging.ERROR,
        defect=None if away else error,
    )


def _log_about(
    delivery: Delivery[Any],
    owner: str,
    text: str,
    *,
    level: int = logging.WARNING,
    defect: Exception | None = None,
) -> None:
    message = delivery.message
    logger.log(
        level,
        "%s (message %s of %s, group %s)",
        text,
        message.id,
        message.topic,
        delivery.group,
        extra={"message_id": message.id, "topic": message.topic, "group": delivery.group, "member": owner},
        exc_info=defect,
    )
