"""Dead letters as an operator sees them: count, browse, redrive, purge."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from messaging.adapter import DeadLetterStore, Gone, StoredLetter
from messaging.catalogue import kept_apart
from messaging.clock import Clock, sleep
from messaging.errors import ConfigurationError, InvalidMessage, PublishError, PublishManyError
from messaging.failure import Cause, Failure, parse, redriven
from messaging.kept_letters import KeptLetters
from messaging.message import Message, Receipt
from messaging.middleware.expiry import has_expired
from messaging.middleware.retry import is_finite
from messaging.prepare import corrected

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec
    from messaging.bus import Bus
    from messaging.stack import ErrorInfo
    from messaging.topology import TopologyMode

logger = logging.getLogger("messaging")

PAGE = 100
"""How many letters are in memory at once."""
_RATE_STEP = 0.1  # seconds of a rate that go out at once


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dead letter comes from."""

    topic: str
    group: str
    partition: int = 0
    position: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that its group gave up, and why.

    `attempts` and `deliveries` are totals over all redrives; an attempt that never began, as the message had
    expired, does not count. `cause` is None, and the counters are 0, where another program put the message there.
    `failure` holds the rest of what was recorded: the first failure, service, host.
    """

    id: str
    message: Message
    reason: str
    cause: Cause | None
    error: ErrorInfo | None
    attempts: int
    deliveries: int
    redrives: int
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    origin: Origin
    handler: str
    failure: Failure


Where: TypeAlias = Callable[[DeadLetter], bool]
Edit: TypeAlias = Callable[[Message], Message]


class DeadLetters:
    """The dead letters of one group of one topic. Made by `Bus.dead_letters`.

    Before anything is read the broker is asked whether the group is there, and of the shape that the program says
    (16): each of these raises TopicNotFound or ConfigurationError where it is not, and Closed on a closed bus.
    """

    def __init__(
        self,
        store: DeadLetterStore,
        *,
        clock: Clock,
        topic: str,
        group: str,
        most: int,
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._most = most
        self._ready = ready
        self._clock = clock
        self._topic = topic
        self._group = group

    def __repr__(self) -> str:
        return f"DeadLetters({self._topic!r}, group={self._group!r})"

    async def count(self) -> int:
        """How many there are now. Raises ConnectionFailed."""
        await self._ready()
        return await self._store.count()

    async def browse(
        self, *, limit: int | None = None, where: Where | None = None
    ) -> AsyncGenerator[DeadLetter, None]:
        """The letters that were there at the start, oldest first; nothing is consumed or reordered.

        At most `limit` of those for which `where` is true. Leave the loop early inside `contextlib.aclosing`
        to give the broker's resources back at once. Raises ConnectionFailed.
        """
        if limit is not None and limit <= 0:
            return
        await self._ready()
        found = 0
        async with self._store.scan() as letters:
            async for stored in letters:
                letter = self._letter(stored)
                if where is not None and not where(letter):
                    continue
                yield letter
                found += 1
                if found == limit:
                    return

    async def redrive(
        self,
        *,
        ids: Collection[str] | None = None,
        where: Where | None = None,
        edit: Edit | None = None,
        rate: float | None = None,
        dry_run: bool = False,
    ) -> int:
        """Put letters back to this group's tail, each confirmed before its letter is removed; how many (11).
        A letter that somebody else took meanwhile is not counted.

        No other group sees them again. Their attempts start anew; the counters of the record go on. Order
        against messages of the same key that were handled meanwhile is not restored: `dry_run=True` sends
        nothing, says so in the log, and returns how many would be sent. A crash between gives a duplicate,
        never a loss. A letter that holds the beginning of its message only (`failure.cut_from`) is refused unless
        `edit` gives it a body; one whose message has expired, and would be handled by nobody, unless `edit` gives it a
        later `expires_at`, or None.

        `ids` and `where` choose; without them all that were there at the start. `edit` corrects a message;
        its id and topic stay. `rate` is in messages per second.

        Raises PublishManyError, after all were tried, when some were refused or could not be sent: those stay dead.
        InvalidMessage for an edit that changes id or topic or cannot be carried, naming the attribute, MessageTooLarge,
        whatever `edit` and `where` raise, and ConnectionFailed end it at once; what was redriven before stays so, the
        rest stays dead.
        """
        if rate is not None and not (is_finite(rate) and rate > 0):
            raise ConfigurationError(f"rate is {rate!r}; it must be a positive number of messages per second")
        await self._ready()
        size = PAGE if rate is None else max(1, min(PAGE, int(rate * _RATE_STEP)))
        start = self._clock.monotonic()
        results: list[Receipt | PublishError] = []
        keyed = tried = 0
        try:
            async with aclosing(self._pages(size, ids, where)) as pages:
                async for page in pages:
                    messages = [_edited(stored.message, edit, self._most) for stored in page]
                    if dry_run:
                        results += filter(None, map(self._refusal, page, messages))
                    else:
                        if rate is not None and tried:
                            await sleep(self._clock, start + tried / rate - self._clock.monotonic())
                        results += await self._redrive(page, messages)
                    tried += len(page)
                    keyed += sum(message.key is not None for message in messages)
        finally:
            self._report_redrive(tried, keyed, results, dry_run=dry_run)
        if dry_run:
            return tried - len(results)
        if any(isinstance(result, PublishError) for result in results):
            raise PublishManyError(results)
        return len(results)

    async def purge(self, *, ids: Collection[str] | None = None, where: Where | None = None) -> int:
        """Delete letters for good; how many. `ids` and `where` choose; without them all that are there now.

        Raises ConnectionFailed; what was deleted before stays so.
        """
        await self._ready()
        purged = 0
        try:
            async with aclosing(self._pages(PAGE, ids, where)) as pages:
                async for page in pages:
                    purged += await self._store.purge(page)
        finally:
            if purged:
                logger.info(
                    "purged %d dead letters of %s/%s", purged, self._topic, self._group, extra=self._extra()
                )
        return purged

    async def _redrive(
        self, page: Sequence[StoredLetter], messages: Sequence[Message]
    ) -> list[Receipt | PublishError]:
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        refused: list[Receipt | PublishError] = []
        whole: list[tuple[StoredLetter, Message, str | None]] = []
        for stored, message in zip(page, messages, strict=True):
            if (error := self._refusal(stored, message)) is not None:
                refused.append(error)
            else:
                whole.append((stored, message, redriven(stored.failure, now)))
        results = await self._store.redrive(whole) if whole else ()
        return refused + [
            Receipt(message.id) if result is None else result
            for (_, message, _), result in zip(whole, results, strict=True)
            if not isinstance(result, Gone)
        ]

    def _refusal(self, stored: StoredLetter, message: Message) -> InvalidMessage | None:
        """Why the letter is not redriven: nobody would handle the message, or its beginning only."""
        cut_from = parse(stored.failure).cut_from
        if cut_from and message.body == stored.message.body:  # see `messaging.oversize`
            why = (
                f"it holds {len(message.body)} of the {cut_from} bytes that its body had. Publish the original anew, "
                f"or give it a body with `edit`"
            )
        elif message.expires_at is not None and has_expired(message, self._clock):
            why = f"it expired at {message.expires_at.isoformat()}. Give it a later `expires_at`, or None, with `edit`"
        else:
            return None
        return InvalidMessage(
            f"dead letter {message.id} of {self._topic}/{self._group} was not redriven: {why}"
        )

    async def _pages(
        self, size: int, ids: Collection[str] | None, where: Where | None
    ) -> AsyncGenerator[list[StoredLetter], None]:
        """The chosen letters, `size` at a time, inside one scan."""
        chosen = None if ids is None else {ids} if isinstance(ids, str) else frozenset(ids)
        page: list[StoredLetter] = []
        async with self._store.scan() as letters:
            async for stored in letters:
                if chosen is not None and stored.message.id not in chosen:
                    continue
                if where is not None and not where(self._letter(stored)):
                    continue
                page.append(stored)
                if len(page) == size:
                    yield page
                    page = []
            if page:
                yield page

    def _letter(self, stored: StoredLetter) -> DeadLetter:
        failure = parse(stored.failure)
        first, last = failure.first, failure.last
        return DeadLetter(
            id=stored.message.id,
            message=stored.message,
            reason=last.reason if last else "",
            cause=last.cause if last else None,
            error=last.error if last else None,
            attempts=failure.attempts,
            deliveries=failure.deliveries,
            redrives=failure.redrives,
            first_failed_at=first.at if first else None,
            last_failed_at=last.at if last else None,
            # The record may be forged; which group it is the dead letter of is not its to say.
            origin=Origin(self._topic, self._group, failure.partition, failure.position),
            handler=last.handler if last else "",
            failure=failure,
        )

    def _report_redrive(
        self, tried: int, keyed: int, results: Sequence[Receipt | PublishError], *, dry_run: bool
    ) -> None:
        if not tried:
            return
        refused = sum(isinstance(result, PublishError) for result in results)
        logger.info(
            "%s %d dead letters of %s/%s to its tail, %d refused; for the %d with a key, order against"
            " messages of the same key that were handled meanwhile is not restored",
            "would redrive" if dry_run else "redrove",
            tried - refused,
            self._topic,
            self._group,
            refused,
            keyed,
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, str]:
        return {"topic": self._topic, "group": self._group}


def _edited(message: Message, edit: Edit | None, most: int) -> Message:
    if edit is None:
        return message
    # With headers of its own: what changes them in place is seen, and changes no letter.
    edited = edit(replace(message, headers=dict(message.headers)))
    if not isinstance(edited, Message):  # pyright: ignore[reportUnnecessaryIsInstance]  a forgotten return
        raise InvalidMessage(
            f"the edit of message {message.id} of {message.topic} returned a"
            f" {type(edited).__name__}, not a Message"
        )
    if (edited.id, edited.topic) != (message.id, message.topic):
        raise InvalidMessage(
            f"the edit of message {message.id} of {message.topic} changed its id or topic; both must stay"
        )
    return message if edited == message else corrected(message, edited, most)


def letters_of(bus: Bus, group: GroupSpec) -> DeadLetters:
    """Those of this group, in all generations of its topic."""
    broker, catalogue = bus.broker(group.topic.name), bus.catalogue

    async def ready() -> None:
        bus.check_open()
        # With other partitions than the broker's, a redrive would put messages where nobody looks.
        mode: TopologyMode = "off" if bus.settings.topology == "off" else "verify"
        await catalogue.declare([group], [group.topic], mode)

    async def stores() -> Sequence[DeadLetterStore]:
        kept = await catalogue.refresh(group.topic)
        return [broker.adapter.dead_letters(catalogue.in_generation(group, one)) for one in kept]

    return DeadLetters(
        KeptLetters(stores) if kept_apart(broker.adapter) else broker.adapter.dead_letters(group),
        clock=bus.clock,
        topic=group.topic.name,
        group=group.name,
        most=broker.capabilities.max_message_bytes,
        ready=ready,
    )
