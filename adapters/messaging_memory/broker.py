"""The broker: topics and groups, connections and reply inboxes, and the faults that tests cause.

`MemoryAdapter.native` is one. Tests may make their own and give it to adapters: `Broker()`, then
`MemoryAdapter(context, broker=broker)`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.clock import SystemClock
from messaging.errors import ConfigurationError, ConnectionFailed, TopicNotFound
from messaging_memory.log import TopicLog
from messaging_memory.ownership import OwnedGroup
from messaging_memory.shared import SharedGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from messaging.clock import Clock
    from messaging.errors import MessagingError
    from messaging_memory.group import Group, Member
    from messaging_memory.replies import MemoryInbox


class Connection:
    """One adapter's connection to a broker."""

    __slots__ = ("alive", "broker", "dead", "inboxes", "members")

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.alive = False
        self.dead = False
        """Its process has crashed: it never connects again."""
        self.members: dict[Member, None] = {}
        self.inboxes: dict[MemoryInbox, None] = {}

    def ensure(self) -> None:
        """One attempt to connect where the connection is lost. Raises ConnectionFailed."""
        if not self.alive:
            if self.dead:
                raise ConnectionFailed(f"this member of memory broker {self.broker.name!r} has crashed")
            if not self.broker.reachable:
                raise ConnectionFailed(
                    f"memory broker {self.broker.name!r} is disconnected: Broker.reconnect() ends that"
                )
            self.alive = True

    def drop(self, *, counted: bool = False, told: bool = True) -> None:
        """Lose it: what its members hold goes back; `told` that it is lost, they call `on_lost`."""
        self.alive = False
        reason = f"the connection to memory broker {self.broker.name!r} was lost"
        for member in list(self.members):
            self.end(member, ConnectionFailed(reason), counted=counted, told=told)
        for inbox in list(self.inboxes):
            inbox.drop()

    def end(
        self, member: Member, reason: MessagingError, *, counted: bool = False, told: bool = True
    ) -> None:
        """End one membership."""
        self.members.pop(member, None)
        deliveries = member.group.leave(member, reason, counted=counted)
        if told and deliveries:
            member.ownership.on_lost(deliveries, str(reason))


class Broker:
    """Partitions with positions, groups, leases, delays, dead letters and retention, all in memory.

    Belongs to one event loop while adapters are connected to it. Durations are seconds of `clock`.
    """

    _named: ClassVar[dict[str, Broker]] = {}

    def __init__(self, name: str = "", *, clock: Clock | None = None) -> None:
        self.name = name
        self.clock: Clock = clock or SystemClock()
        self.topics: dict[str, TopicLog] = {}
        self.inboxes: dict[str, MemoryInbox] = {}
        self.connections: dict[Connection, None] = {}
        self.reachable = True
        self.dropped_replies = 0
        """Replies whose inbox was gone or full."""
        self._loop: asyncio.AbstractEventLoop | None = None
        touch: Callable[[], object] | None = getattr(self.clock, "touch", None)
        self.touch: Callable[[], object] = touch or _nothing
        """Told of every operation: a virtual clock sees by it that the program is not at rest."""

    @classmethod
    def named(cls, name: str, clock: Clock) -> Broker:
        """The process's broker of that name; it is gone when its last connection closes."""
        return cls._named.get(name) or cls(name, clock=clock)

    # Connections

    def connect(self, connection: Connection, *, registered: bool) -> None:
        """Raises ConnectionFailed, or ConfigurationError where the broker is in use on another event loop."""
        loop = asyncio.get_running_loop()
        if self.connections and self._loop is not loop:
            raise ConfigurationError(
                f"memory broker {self.name!r} is in use on another event loop; give each loop its own"
            )
        self._loop = loop
        connection.ensure()
        if not self.connections:
            for topic in self.topics.values():
                for group in topic.groups.values():
                    group.resume()
        self.connections[connection] = None
        if registered:
            self._named[self.name] = self

    def disconnected(self, connection: Connection) -> None:
        """A connection was closed for good."""
        self.connections.pop(connection, None)
        if not self.connections:
            for topic in self.topics.values():
                for group in topic.groups.values():
                    group.close()
            if self._named.get(self.name) is self:
                del self._named[self.name]

    # Faults

    def disconnect(self) -> None:
        """Lose all connections and accept none until `reconnect`."""
        self.reachable = False
        self._drop_all()

    def reconnect(self) -> None:
        """Accept connections again."""
        self.reachable = True
        self.touch()

    def restart(self) -> None:
        """Lose all connections and accept new ones at once; what is stored stays."""
        self._drop_all()

    def crash(self, connection: Connection) -> None:
        """A process dies: nothing is told to it, and what it held comes back counted, as after `kill -9`."""
        connection.dead = True
        connection.drop(counted=True, told=False)
        self.disconnected(connection)
        self.touch()

    def _drop_all(self) -> None:
        for connection in list(self.connections):
            connection.drop()
        self.touch()

    # Topics and groups

    def topic(self, name: str, *, known_as: str | None = None) -> TopicLog:
        """The topic by its physical name, told as programs call it. Raises TopicNotFound."""
        try:
            return self.topics[name]
        except KeyError:
            raise TopicNotFound(
                f"topic {known_as or name!r} does not exist on memory broker {self.name!r}: declare it first"
            ) from None

    def create_topic(
        self,
        name: str,
        *,
        known_as: str | None = None,
        partitions: int = 8,
        ordered: bool = False,
        retention: float | None = None,
        history: int | None = 1000,
    ) -> TopicLog:
        """Create a topic by its physical name, told as programs call it; one that exists is returned as it is."""
        topic = self.topics.get(name)
        if topic is None:
            topic = TopicLog(
                known_as or name, partitions=partitions, ordered=ordered, retention=retention, history=history
            )
            self.topics[name] = topic
        return topic

    def group(self, topic: TopicLog, name: str) -> Group:
        """Raises TopicNotFound."""
        try:
            return topic.groups[name]
        except KeyError:
            raise TopicNotFound(
                f"topic {topic.name!r} has no group {name!r} on memory broker {self.name!r}: declare it first"
            ) from None

    def create_group(
        self, topic: TopicLog, name: str, *, ordered: bool = False, start: str | datetime = "latest"
    ) -> Group:
        """Create a group; one that exists is returned as it is, wherever it stands."""
        group = topic.groups.get(name)
        if group is None:
            topic.expire(self.clock.time())
            kind = OwnedGroup if ordered else SharedGroup
            group = kind(topic, name, cursors=topic.starts(start), clock=self.clock)
            topic.groups[name] = group
        return group

    def delete_group(self, topic: TopicLog, name: str) -> None:
        """Forget the group and all that is kept for it; its members learn it from their next `receive`."""
        group = topic.groups.pop(name, None)
        if group is None:
            return
        reason = TopicNotFound(
            f"group {name!r} of topic {topic.name!r} was deleted: declare it again to go on"
        )
        for connection in self.connections:
            for member in [member for member in connection.members if member.group is group]:
                connection.end(member, reason)
        group.close()
        self.touch()

    # Messages

    def inject(
        self,
        topic: str,
        body: bytes,
        *,
        headers: Mapping[str, Any] | None = None,
        content_type: str | None = None,
        partition: int = 0,
        reply_to: str | None = None,
    ) -> str:
        """Publish to a physical name as a program without this library would; returns the position."""
        log = self.topic(topic)
        position = log.partitions[partition].append(
            (self.clock.time(), body, content_type, reply_to, dict(headers or {}))
        )
        self.stored(log, 1)
        return position

    def stored(self, topic: TopicLog, most: int) -> None:
        """There are new messages, `most` at most: let waiting members look."""
        topic.expire(self.clock.time())
        topic.trim()
        for group in topic.groups.values():
            if group.waiting:
                group.wake(most)
        self.touch()


def _nothing() -> None:
    """What a clock without `touch` is told."""
