"""The SPI over the file. All of SQLite runs on one thread of the adapter, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, unquote

from messaging.adapter import (
    DONE,
    GONE,
    BrokerHealth,
    Capabilities,
    Capability,
    Consumer,
    ConsumerStatus,
    DeadLetterStore,
    Hold,
    Lease,
    RawDelivery,
    ReplyInbox,
    SettleError,
    StoredLetter,
)
from messaging.clock import sleep
from messaging.envelope import decode
from messaging.errors import (
    Closed,
    ConfigurationError,
    ConnectionFailed,
    InvalidMessage,
    LeaseLost,
    PublishError,
    PublishUncertain,
    TopicNotFound,
    UnsupportedCapability,
)
from messaging.message import Release, Retry
from messaging.names import NameRules, physical
from messaging.partition import partition_of
from messaging_sqlite.database import PREFIX, TRIPPED, Database, same
from messaging_sqlite.generations import KeepsGenerations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from messaging.adapter import (
        AdapterContext,
        Gone,
        GroupInfo,
        GroupSpec,
        Outgoing,
        Ownership,
        Settled,
        Settlement,
        Subscription,
        TopicSpec,
        Topology,
    )
    from messaging.message import Message, Receipt

T = TypeVar("T")

RULES = NameRules(maximum=1000)
POLL = 0.02
"""Seconds between two looks at the file: SQLite tells other processes nothing."""
PAGE = 100
"""Dead letters in memory at once."""
NATIVE = Capability("native")

logger = logging.getLogger("messaging")


class SQLiteAdapter(KeepsGenerations):
    """`sqlite:///path/to/file.db`, or four slashes for an absolute path; `?lease=30` in seconds.

    `?sync=normal` leaves the disk its time: a confirmed message survives a crash of the process, and may be lost
    with the power. `full` is usual.
    """

    name: ClassVar[str] = "sqlite"

    def __init__(self, context: AdapterContext, path: str, *, lease: float, sync: str = "full") -> None:
        self.context = context
        self.lease = lease
        self._path = path
        self._sync = sync
        self._database = Database(path, context.clock.time, sync)
        self._thread: ThreadPoolExecutor | None = None
        self._topics: dict[str, TopicSpec] = {}
        """What this adapter has declared, by the file's name of each."""
        self._inboxes = 0

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> SQLiteAdapter:
        address, _, query = url.partition("?")
        path = unquote(address.removeprefix("sqlite:///"))
        if not address.startswith("sqlite:///") or not path:
            raise ConfigurationError(
                "a SQLite URL is sqlite:///path/to/file.db, with options as ?option=value"
            )
        options: dict[str, Any] = {**context.options, **dict(parse_qsl(query, keep_blank_values=True))}
        if unknown := sorted(options.keys() - {"lease", "sync"}):
            raise ConfigurationError(f"unknown option {unknown[0]!r} of SQLite; it knows lease and sync")
        sync = options.get("sync", "full")
        if sync not in {"full", "normal"}:
            raise ConfigurationError(f"option 'sync' is full or normal, not {sync!r}")
        try:
            lease = float(options.get("lease", 30))
        except ValueError:
            lease = 0.0
        if not 0 < lease < float("inf"):
            raise ConfigurationError(
                f"option 'lease' is a number of seconds above 0, not {options['lease']!r}"
            )
        return cls(context, path, lease=lease, sync=sync)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            broker="sqlite",
            version=sqlite3.sqlite_version,
            groups=Capability("native", "each group has a row of its own"),
            order=NATIVE,
            delayed_retry=NATIVE,
            dead_letters=NATIVE,
            redrive=NATIVE,
            requests=NATIVE,
            history=Capability(
                "unsupported", "what was handled is deleted: declare the group first, and start at latest"
            ),
            no_group=NATIVE,
            generations=NATIVE,
            crash_guard=NATIVE,
            lateness=5 * POLL,
            max_message_bytes=16 * 1024 * 1024,
            durability="power loss" if self._sync == "full" else "process crash",
            fenced=True,
        )

    @property
    def native(self) -> Database:
        """The connection; use it on no other thread while the bus is open."""
        return self._database

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Call on the thread. Cancelled, the call still ends there; its result is lost."""
        if self._thread is None:
            raise Closed(f"the SQLite file {self._path} is not open")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except sqlite3.Error as error:
            raise ConnectionFailed(f"the SQLite file {self._path} failed: {error}") from error

    async def open(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="messaging-sqlite")
            await self.run(self._database.open, self.context.clock.time())

    async def close(self) -> None:
        if self._thread is not None:
            try:
                await self.run(self._database.close)
            finally:
                self._thread.shutdown(wait=False)
                self._thread = None

    # --- topology ------------------------------------------------------------------------------------------------

    def topic_name(self, spec: TopicSpec) -> str:
        """The file's name of a topic; an adopted one is used as it is (17)."""
        return spec.native or physical(
            RULES, "topic", topic=spec.name, namespace=self.context.namespace, generation=spec.generation
        )

    async def declare(self, topology: Topology) -> None:
        specs = {
            self.topic_name(spec): spec for spec in (*topology.topics, *(g.topic for g in topology.groups))
        }
        if topology.mode != "off":
            await self.run(self._declare, specs, topology)
        self._topics.update(specs)

    def _declare(self, specs: Mapping[str, TopicSpec], topology: Topology) -> None:
        create = topology.mode == "declare"
        for name, spec in specs.items():
            if create and spec.native is None:
                self._database.create_topic(name, spec.partitions, spec.ordered, spec.retention)
            found = self._database.topic(name)
            if found is None:
                raise TopicNotFound(f"topic {spec.name} does not exist in {self._path}: declare it first")
            same(f"topic {spec.name}", "partitions", spec.partitions, found["partitions"])
            same(f"topic {spec.name}", "ordered", spec.ordered, bool(found["ordered"]))
        for group in topology.groups:
            topic = self.topic_name(group.topic)
            if create and group.native is None and self._database.group(topic, group.name) is None:
                if group.start != "latest":
                    raise UnsupportedCapability(
                        f"{group.topic.name}/{group.name}: {self.capabilities.history.reason}"
                    )
                self._database.create_group(topic, group.name, group.ordered)
            self.find_group(group)

    def find_group(self, group: GroupSpec) -> int:
        """The group's number. On the thread. Raises TopicNotFound, and ConfigurationError where its order differs."""
        what = f"group {group.name} of topic {group.topic.name}"
        found = self._database.group(self.topic_name(group.topic), group.native or group.name)
        if found is None:
            raise TopicNotFound(f"{what} does not exist in {self._path}: declare it first")
        same(what, "ordered", group.ordered, bool(found["ordered"]))
        return int(found["id"])

    async def groups(self) -> Sequence[GroupInfo]:
        return await self.run(self._database.infos, self._topics, self.context.clock.time())

    async def delete_group(self, group: GroupSpec) -> None:
        await self.run(self._database.delete_group, self.topic_name(group.topic), group.native or group.name)

    async def health(self) -> BrokerHealth:
        try:
            async with asyncio.timeout(1):
                return BrokerHealth(connected=True, groups=await self.groups())
        except (ConnectionFailed, Closed, TimeoutError) as error:
            return BrokerHealth(connected=False, error=str(error) or f"{self._path} does not answer")

    # --- messages ------------------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        named = [(self.topic_name(one.topic), one) for one in messages]
        try:
            results, dropped = await self.run(self._database.publish, named, self.context.clock.time())
        except ConnectionFailed as error:
            return [
                PublishUncertain(f"message {one.message.id} was not confirmed: {error}") for one in messages
            ]
        if dropped:
            logger.warning("%d messages were older than their topic keeps them, and are gone", dropped)
        return results

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        del ownership  # nothing is revoked, and what is lost is told by `extend`
        return SQLiteConsumer(self, self._database, subscription)

    async def reply_inbox(self) -> ReplyInbox:
        self._inboxes += 1
        address = f"{self._reply_prefix}{self.context.member}:{self._inboxes}"
        await self.run(self._database.open_inbox, address, self.context.clock.time())
        return SQLiteInbox(self, self._database, address)

    @property
    def _reply_prefix(self) -> str:
        return f"reply:{self.context.namespace or ''}:"

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        results: list[PublishError | None] = [
            None
            if address.startswith(self._reply_prefix)
            else InvalidMessage(
                f"reply {message.id} was not sent: {address[:80]!r} is no address of an inbox"
            )
            for address, message in replies
        ]
        legal = [reply for reply, refused in zip(replies, results, strict=True) if refused is None]
        try:
            await self.run(self._database.reply, legal, self.context.clock.time())
        except ConnectionFailed as error:
            return [refused or PublishUncertain(f"a reply was not confirmed: {error}") for refused in results]
        return results

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        return SQLiteDeadLetters(self, self._database, group)


def message_of(row: sqlite3.Row, topic: str) -> Message:
    """The message in a row, whoever wrote it."""
    return decode(
        json.loads(row["headers"]),
        prefix=PREFIX,
        topic=topic,
        body=row["body"],
        position=str(row["id"]),
        content_type=row["content_type"],
    )


class SQLiteConsumer(Consumer):
    """A member of a group, with one lease for all that it holds. See `messaging.adapter.Consumer`."""

    def __init__(self, adapter: SQLiteAdapter, database: Database, subscription: Subscription) -> None:
        self.lease = adapter.lease
        self._seconds = adapter.lease
        self._adapter = adapter
        self._database = database
        self._clock = adapter.context.clock
        self._group = subscription.group
        self._number: int | None = None
        self._member: int | None = None
        self._until = Lease()
        self._taking: asyncio.Task[list[RawDelivery]] | None = None
        self._left: list[RawDelivery] = []
        """What a call that was cancelled has taken beyond what the next one asked for."""
        self._closed = False

    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        end = self._clock.monotonic() + wait
        while True:
            # A cancelled call leaves the look at the file to the next one: what it takes is not lost.
            self._taking = self._taking or asyncio.create_task(self._take(limit, tuple(paused)))
            taking = self._taking
            await asyncio.wait((taking,))
            self._taking = None
            taken = [*self._left, *taking.result()]
            batch, self._left = taken[:limit], taken[limit:]
            if batch or self._clock.monotonic() >= end:
                return batch
            await sleep(self._clock, min(POLL, max(0.0, end - self._clock.monotonic())))

    async def _take(self, limit: int, paused: Collection[int]) -> list[RawDelivery]:
        if self._closed:
            raise Closed("this consumer is closed: ask the adapter for a new one")
        if self._has_ended:
            await self._leave()
        if self._number is None:
            self._number = await self._adapter.run(self._adapter.find_group, self._group)
        monotonic = self._clock.monotonic()
        if self._member is None:
            self._member = await self._adapter.run(self._database.join, self._number, self._seconds)
            self._until = Lease(monotonic + self._seconds)
        member = self._member
        found = await self._adapter.run(
            self._database.take,
            *(member, self._number, self._group.ordered, limit, paused, self._seconds),
        )
        if found is None:  # its lease has ended, or the group was deleted
            self._number = self._member = None
            return []
        rows, fence = found
        return [self._delivery(row, member, fence) for row in rows]

    def _delivery(self, row: sqlite3.Row, member: int, fence: int) -> RawDelivery:
        return RawDelivery(
            message=message_of(row, self._group.topic.name),
            partition=row["partition"],
            position=str(row["id"]),
            attempt=row["attempt"],
            deliveries=row["deliveries"],
            returns=row["returns"],
            guard="tripped" if row["guard"] == TRIPPED else "none",
            failure=row["failure"],
            reply_to=row["reply_to"],
            fence=fence,
            lease=self._until,
            native=row,
            token=(row["id"], member),
        )

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        open_ones = [one for one in settlements if one.delivery.token is not None]
        try:
            taken = await self._adapter.run(self._settle, open_ones, self._clock.time())
        except (ConnectionFailed, Closed) as error:
            return [SettleError(error)] * len(settlements)
        results = dict(zip(map(id, open_ones), taken, strict=True))
        return [self._settled(one, results.get(id(one), True)) for one in settlements]

    def _settle(self, settlements: Sequence[Settlement], now: float) -> list[bool]:
        """On the thread."""
        ordered = self._group.ordered
        taken = self._database.settle([(*one.delivery.token, one) for one in settlements], ordered, now)
        for one, known in zip(settlements, taken, strict=True):
            if known and not (ordered and isinstance(one.outcome, Release | Retry)):
                one.delivery.token = None
        return taken

    def _settled(self, settlement: Settlement, taken: bool) -> Settled:
        if not taken:
            message = settlement.delivery.message
            return SettleError(
                LeaseLost(f"message {message.id} of {message.topic} belongs to another member")
            )
        if settlement.delivery.token is not None:
            return Hold(self._clock.monotonic() + settlement.after)
        return DONE

    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        if self._member is None:
            return [False] * len(deliveries)
        member, monotonic = self._member, self._clock.monotonic()
        rows = await self._adapter.run(self._database.extend, member, seconds)
        if self._has_ended or self._member != member:
            await self._leave()
            return [False] * len(deliveries)
        self._until.deadline = monotonic + seconds
        return [
            one.token is not None and one.token[1] == member and one.token[0] in rows for one in deliveries
        ]

    async def isolate(self, delivery: RawDelivery) -> bool:
        if delivery.token is None or not await self._adapter.run(self._database.isolate, *delivery.token):
            raise LeaseLost(f"message {delivery.message.id} belongs to another member")
        delivery.guard = "alone"
        return True

    def status(self) -> ConsumerStatus:
        return ConsumerStatus(connected=self._member is not None)

    async def close(self) -> None:
        self._closed = True
        if self._taking is not None:
            await asyncio.gather(self._taking, return_exceptions=True)
            self._taking = None
        await self._leave()

    @property
    def _has_ended(self) -> bool:
        """Whether the lease has ended as the reader sees it: it has given up what the file still says it holds."""
        return self._member is not None and self._clock.monotonic() >= self._until.deadline

    async def _leave(self) -> None:
        """Give back all that is held, so that it comes again before what follows it (7)."""
        if self._member is not None:
            member, self._member = self._member, None
            await self._adapter.run(self._database.leave, member)


class SQLiteDeadLetters(DeadLetterStore):
    """See `messaging.adapter.DeadLetterStore`."""

    def __init__(self, adapter: SQLiteAdapter, database: Database, group: GroupSpec) -> None:
        self._adapter = adapter
        self._database = database
        self._group = group

    async def _number(self) -> int:
        return await self._adapter.run(self._adapter.find_group, self._group)

    async def count(self) -> int:
        return await self._adapter.run(self._database.count_dead, await self._number())

    def scan(self) -> AbstractAsyncContextManager[AsyncIterator[StoredLetter]]:
        return self._scan()

    @asynccontextmanager
    async def _scan(self) -> AsyncGenerator[AsyncIterator[StoredLetter]]:
        number = await self._number()
        yield self._letters(number, await self._adapter.run(self._database.last_dead, number))

    async def _letters(self, number: int, last: int) -> AsyncIterator[StoredLetter]:
        after = 0
        while rows := await self._adapter.run(self._database.dead, number, after, last, PAGE):
            for row in rows:
                message = message_of(row, self._group.topic.name)
                yield StoredLetter(message, row["failure"], (row["id"], row["partition"]))
            after = rows[-1]["id"]

    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        partitions = self._group.topic.partitions
        rows = [
            (
                stored.reference[0],
                stored.reference[1] if message.key is None else partition_of(message.key, partitions),
                replace(message, topic=self._group.topic.name),
                failure,
            )
            for stored, message, failure in letters
        ]
        now = self._adapter.context.clock.time()
        found = await self._adapter.run(self._database.redrive, await self._number(), rows, now)
        return [None if taken else GONE for taken in found]

    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        return await self._adapter.run(self._database.purge, [letter.reference[0] for letter in letters])


class SQLiteInbox(ReplyInbox):
    """See `messaging.adapter.ReplyInbox`."""

    def __init__(self, adapter: SQLiteAdapter, database: Database, address: str) -> None:
        self.address = address
        self._adapter = adapter
        self._database = database
        self._clock = adapter.context.clock

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        end = self._clock.monotonic() + wait
        while True:
            rows = await self._adapter.run(
                self._database.take_replies, self.address, limit, self._clock.time()
            )
            if rows or self._clock.monotonic() >= end:
                return [message_of(row, "") for row in rows]
            await sleep(self._clock, min(POLL, max(0.0, end - self._clock.monotonic())))

    async def close(self) -> None:
        await self._adapter.run(self._database.close_inbox, self.address)
