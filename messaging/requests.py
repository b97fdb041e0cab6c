"""Request and reply: one inbox for the process, replies matched to requests by correlation id (semantics 22)."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from messaging.backoff import Backoff
from messaging.clock import check_cancelled, sleep, timeout
from messaging.errors import (
    Closed,
    InvalidMessage,
    MessagingError,
    RemoteError,
    RequestTimeout,
    is_fatal,
)
from messaging.ids import new_id
from messaging.message import Ack, Message, Release
from messaging.texts import message_of, summary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from messaging.adapter import Adapter, RawDelivery, ReplyInbox
    from messaging.clock import Clock
    from messaging.codec import Codec
    from messaging.errors import MessageTooLarge
    from messaging.message import Outcome

logger = logging.getLogger("messaging")

ERROR_TYPE = "messaging.error"
"""The `type` of a reply that carries the responder's failure."""
_WAIT = 5.0
_WAIT_AGAIN = 0.2
"""Seconds of the first read after one that failed: it is known soon that replies arrive again."""
_AT_LEAST = 0.2
"""Seconds between two reads that fail, also where requests wait for the next."""
_NO_INBOX = ": nothing was sent, the inbox for replies was not open by then"
_SENDING = (
    ": its topic was not declared, or the request not confirmed, by then; who could answer is not known"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a responder returned: sent as the reply, even when it is None."""

    value: Any


class Requester:
    """The requests in flight to one broker of a bus. Bounded by the callers: each waits for its own."""

    def __init__(self, adapter: Adapter, clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._pending: dict[str, asyncio.Future[Message]] = {}
        self._inbox: ReplyInbox | None = None
        self._task: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._ended: Exception | None = None
        self._failure: Exception | None = None
        self._returning: list[asyncio.Future[None]] = []
        """Of requests that wait until replies arrive again."""
        self._wanted = asyncio.Event()
        self.late = 0
        """Replies that came when nobody waited for them any more."""

    @property
    def failing(self) -> str | None:
        """Why replies do not arrive now; None while they do, and where nobody has asked for any."""
        return None if self._failure is None else f"replies cannot be received: {self._failure}"

    async def request(
        self, name: str, send: Callable[[str, str], Awaitable[object]], within: float
    ) -> Message:
        """Send with a reply address and a correlation id, and return the reply.

        Raises RequestTimeout after `within` seconds, ConnectionFailed when the connection that would bring the
        reply is lost, and what `send` raises. Nothing is left behind in any case. Nothing is sent while replies cannot
        be received: the next attempt is made soon, and if it fails the request fails with it.
        """
        correlation_id = new_id()
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        reached = _NO_INBOX
        try:
            async with timeout(self._clock, within, catch_up=True):
                inbox = self._inbox
                if inbox is None or self._task is None or self._task.cancelled():
                    inbox = await self._open()
                while self._failure is not None and self._ended is None:
                    reached = f": nothing was sent, {self.failing}"
                    await self._returned()
                if self._ended is not None:
                    raise self._ended.with_traceback(None)  # else it keeps the frames of every request so far
                self._pending[correlation_id] = reply
                reached = _SENDING
                await send(inbox.address, correlation_id)
                reached = ""
                return await reply
        except TimeoutError as error:
            if isinstance(error, MessagingError):
                raise
            raise RequestTimeout(f"No reply from {name} within {within:g} s{reached}") from None
        finally:
            self._pending.pop(correlation_id, None)
            if reply.done() and not reply.cancelled():
                reply.exception()  # it may have failed while `send` was raising something else

    async def close(self) -> None:
        """Fail what still waits and leave the inbox."""
        self._ended = Closed("The bus was closed before the reply came")
        self._fail(self._ended)
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait((self._task,))
        finally:  # cancelled, too: the inbox reads by itself until it is closed
            if self._inbox is not None:
                await self._inbox.close()

    async def _returned(self) -> None:
        """Wait until replies arrive again. Raises what the next attempt to receive them fails with."""
        returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning.append(returned)
        self._wanted.set()
        try:
            await returned
        finally:
            if returned in self._returning:
                self._returning.remove(returned)

    async def _open(self) -> ReplyInbox:
        async with self._opening:
            if self._inbox is None:
                inbox = await self._adapter.reply_inbox()
                if self._ended is not None:  # closed meanwhile
                    await inbox.close()
                    raise self._ended.with_traceback(None)  # as in `request`
                self._inbox = inbox
            if self._task is None or self._task.cancelled():  # by another part of the program
                self._task = asyncio.create_task(self._receive(self._inbox), name="messaging-replies")
            return self._inbox

    async def _receive(self, inbox: ReplyInbox) -> None:
        backoff = Backoff()
        while True:
            check_cancelled()
            try:
                replies = await inbox.receive(256, _WAIT if self._failure is None else _WAIT_AGAIN)
            except Exception as error:
                self._fail(error)
                if is_fatal(error):
                    self._failure = self._ended = error
                    logger.error("Replies are received no more, all requests fail: %s", error)  # noqa: TRY400  the requests tell its traceback
                    return
                if self._failure is None:
                    logger.warning("Receiving replies was interrupted: %s. Trying again.", error)
                self._failure = error
                check_cancelled()
                await self._pause(backoff.next())
                continue
            if self._failure is not None:
                self._failure = None
                backoff.reset()
                self._go_on()
            for reply in replies:
                self._take_in(reply)
            # Who was answered goes on, and what it asks then is sent, before replies are fetched again.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _pause(self, delay: float) -> None:
        """Wait so long before the next attempt, or until a request wants it."""
        self._wanted.clear()
        await sleep(self._clock, min(delay, _AT_LEAST))
        with suppress(TimeoutError):
            async with timeout(self._clock, max(0.0, delay - _AT_LEAST)):
                await self._wanted.wait()

    def _go_on(self) -> None:
        for returned in self._returning:
            if not returned.done():
                returned.set_result(None)
        self._returning.clear()

    def _take_in(self, reply: Message) -> None:
        waiting = self._pending.get(reply.correlation_id or "")
        if waiting is None or waiting.done():
            self.late += 1
        else:
            waiting.set_result(reply)

    def _fail(self, error: Exception) -> None:
        every: list[asyncio.Future[Any]] = [*self._pending.values(), *self._returning]
        for waiting in every:
            if not waiting.done():
                waiting.set_exception(error)
        self._returning.clear()


def read_reply(codec: Codec[Any], reply: Message) -> Any:
    """The payload of a reply. Raises RemoteError for a responder's failure, DecodeError for a foreign body."""
    if reply.type == ERROR_TYPE:
        raise _remote_error(reply.body)
    return codec.decode(reply.body, reply.content_type)


def too_large(reply: Message, error: MessageTooLarge) -> Message | None:
    """What a requester gets in place of a reply that its broker does not take; None where it is that already."""
    if reply.type == ERROR_TYPE:
        return None
    body = json.dumps({"type": _type_name(error), "message": message_of(error)}).encode()
    return replace(reply, id=new_id(), body=body, content_type="application/json", type=ERROR_TYPE)


def answering(
    codec: Codec[Any], *, source: str, clock: Clock
) -> Callable[[RawDelivery, Outcome], tuple[Outcome, Message | None]]:
    """Turns a responder's outcome into the reply to send: a failure is answered too, and is over with it."""

    def message(request: Message, body: bytes, content_type: str, type_: str) -> Message:
        return Message(
            id=new_id(),
            topic=request.topic,
            body=body,
            content_type=content_type,
            type=type_,
            source=source,
            time=datetime.fromtimestamp(clock.time(), UTC),
            correlation_id=request.correlation_id or request.id,
            causation_id=request.id,
        )

    def failed(request: Message, error: BaseException) -> Message:
        body = json.dumps({"type": _type_name(error), "message": message_of(error)})
        return message(request, body.encode(), "application/json", ERROR_TYPE)

    def answer(delivery: RawDelivery, outcome: Outcome) -> tuple[Outcome, Message | None]:
        request = delivery.message
        if isinstance(outcome, Release):
            return outcome, None
        if not isinstance(outcome, Ack):
            cause = outcome.__cause__ or outcome
            logger.warning(
                "The responder of %s failed on request %s: %s",
                request.topic,
                request.id,
                summary(cause),
                extra={"topic": request.topic, "message_id": request.id},
            )
            return Ack(), failed(request, cause)
        if not isinstance(outcome.reply, Answer):
            return outcome, None
        try:
            body, content_type = codec.encode(outcome.reply.value)
        except InvalidMessage as error:
            return Ack(), failed(request, error)
        return outcome, message(request, body, content_type, request.topic)

    return answer


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _remote_error(body: bytes) -> RemoteError:
    try:
        content = json.loads(body)
        return RemoteError(str(content["type"]), str(content["message"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return RemoteError("unknown", body[:200].decode(errors="replace"))
