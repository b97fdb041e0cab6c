"""The SPI over the file. All of SQLite runs on one thread of the adapter, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import unquote

from messaging.adapter import BrokerHealth, Capabilities, Capability
from messaging.errors import (
    Closed,
    ConfigurationError,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    PublishError,
    PublishUncertain,
    TopicNotFound,
    UnsupportedCapability,
)
from messaging.names import NameRules, physical
from messaging.urls import read_query
from messaging_sqlite.consumer import SQLiteConsumer
from messaging_sqlite.database import POLL, Database, same
from messaging_sqlite.dead_letters import SQLiteDeadLetters
from messaging_sqlite.generations import KeepsGenerations
from messaging_sqlite.replies import SQLiteInbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from messaging.adapter import (
        AdapterContext,
        Consumer,
        DeadLetterStore,
        GroupInfo,
        GroupSpec,
        Outgoing,
        Ownership,
        ReplyInbox,
        Subscription,
        TopicSpec,
        Topology,
    )
    from messaging.message import Message, Receipt

T = TypeVar("T")

RULES = NameRules(maximum=1000)
NATIVE = Capability("native")
_MOST_BYTES = 16 * 1024 * 1024

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
        if unknown := sorted(context.options.keys() - {"lease", "sync"}):
            raise ConfigurationError(f"unknown option {unknown[0]!r} of SQLite; it knows lease and sync")
        # It names what is unknown, but nothing that may be a piece of a password.
        options: dict[str, Any] = {
            **context.options,
            **read_query(query, ("lease", "sync"), "the SQLite URL"),
        }
        sync = options.get("sync", "full")
        if sync not in {"full", "normal"}:
            raise ConfigurationError("option 'sync' is full or normal")
        try:
            lease = float(options.get("lease", 30))
        except ValueError:
            lease = 0.0
        if not 0 < lease < float("inf"):
            raise ConfigurationError("option 'lease' is a number of seconds above 0")
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
            max_message_bytes=_MOST_BYTES,
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
        results = [self._refused(address, message) for address, message in replies]
        legal = [reply for reply, refused in zip(replies, results, strict=True) if refused is None]
        try:
            await self.run(self._database.reply, legal, self.context.clock.time())
        except ConnectionFailed as error:
            return [refused or PublishUncertain(f"a reply was not confirmed: {error}") for refused in results]
        return results

    def _refused(self, address: str, message: Message) -> PublishError | None:
        if not address.startswith(self._reply_prefix):
            return InvalidMessage(
                f"reply {message.id} was not sent: {address[:80]!r} is no address of an inbox"
            )
        if len(message.body) > _MOST_BYTES:
            return MessageTooLarge(f"reply {message.id} has {len(message.body)} bytes, {_MOST_BYTES} fit")
        return None

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        return SQLiteDeadLetters(self, self._database, group)
