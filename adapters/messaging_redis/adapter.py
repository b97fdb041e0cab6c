"""The adapter of Redis Streams."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.adapter import HEALTH_TIMEOUT, Adapter, BrokerHealth, Capabilities, Capability, GroupInfo
from messaging.errors import MessagingError
from messaging_redis.connection import Connection, translate
from messaging_redis.consumer import SharedConsumer
from messaging_redis.dead_letters import RedisDeadLetters
from messaging_redis.partitioned import PartitionedConsumer
from messaging_redis.publisher import Publisher
from messaging_redis.replies import RedisReplies
from messaging_redis.server import MEMORY, WRITE, Server, eviction, inspect, refusal
from messaging_redis.settings import RedisSettings
from messaging_redis.topology import TopologyKeeper
from messaging_redis.trimming import Trimmer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import (
        AdapterContext,
        Consumer,
        DeadLetterStore,
        GroupSpec,
        Outgoing,
        Ownership,
        ReplyInbox,
        Subscription,
        TopicSpec,
        Topology,
    )
    from messaging.errors import PublishError
    from messaging.message import Message, Receipt


class RedisAdapter(Adapter):
    """One pool of connections to one Redis server, cluster or sentinel-guarded master."""

    name: ClassVar[str] = "redis"
    shares: ClassVar[int] = 2

    def __init__(self, settings: RedisSettings, member: str) -> None:
        self._settings = settings
        self._member = member or "member"
        self._connection = Connection(settings)
        self._topology = TopologyKeeper(self._connection)
        self._trimmer = Trimmer(self._connection, self._topology)
        self._publisher = Publisher(self._connection, self._topology, self._trimmer)
        self._replies = RedisReplies(self._connection)
        self._server = Server("", "unknown")

    def __repr__(self) -> str:
        return f"RedisAdapter({self._settings.address!r})"

    @classmethod
    def from_url(cls, url: str, context: AdapterContext) -> RedisAdapter:
        """See `Adapter.from_url`."""
        settings = RedisSettings.from_url(url, context.options, namespace=context.namespace)
        return cls(settings, context.member)

    @property
    def capabilities(self) -> Capabilities:
        """See `Adapter.capabilities`."""
        settings = self._settings
        return Capabilities(
            broker="Redis Streams",
            version=self._server.version,
            groups=Capability("native", "a consumer group per group on every partition's stream"),
            order=Capability(
                "emulated", "each partition has one owner at a time, by a lease with a fencing epoch"
            ),
            delayed_retry=Capability(
                "emulated", "a sorted set by due time, moved by any member of the group"
            ),
            dead_letters=Capability("emulated", "a stream per group; stored and acknowledged in one script"),
            redrive=Capability("emulated", "a stream per group; per partition where the group is ordered"),
            requests=Capability("emulated", "a reply stream per process, read by position"),
            history=Capability(
                "native", f"what is not yet handled, and the last {settings.history:g} s (option history)"
            ),
            no_group=Capability("emulated", "the record of groups, looked at before and beside publishing"),
            generations=Capability("emulated", "streams of their own, and a record of which are kept"),
            idempotent_publish=Capability(
                "unsupported",
                "the server may evict the marks of what it stored: set maxmemory-policy noeviction",
            )
            if self._server.evicts
            else Capability("emulated", "a script keeps the marks of what it stored for some minutes"),
            crash_guard=Capability("emulated", "the server counts hand-overs; the mark is stored in a hash"),
            lateness=settings.poll,
            max_message_bytes=settings.max_message_bytes,
            durability=self._server.durability,
            fenced=True,
        )

    @property
    def native(self) -> Any:
        """The client of redis-py: `redis.asyncio.Redis`, or `RedisCluster`."""
        return self._connection.native

    @property
    def lost_to_retention(self) -> int:
        """Messages that retention removed before every group had handled them, as far as this process did it."""
        return self._trimmer.lost

    async def open(self) -> None:
        """See `Adapter.open`. Raises ConfigurationError for a server that is too old or evicts keys of ours."""
        await self._connection.open()
        try:
            self._server = await inspect(self._connection)
        except BaseException:  # a cancelled start leaves nothing open either
            await self._connection.close()
            raise

    async def close(self) -> None:
        """See `Adapter.close`."""
        await self._connection.close()

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        self._connection.check_open()
        await self._topology.declare(topology)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """See `Adapter.publish`."""
        self._connection.check_open()
        return await self._publisher.publish(messages)

    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        """See `Adapter.consumer`."""
        self._connection.check_open()
        if subscription.group.ordered:
            return PartitionedConsumer(
                self._connection, self._topology, self._trimmer, subscription, ownership, self._member
            )
        return SharedConsumer(self._connection, self._topology, self._trimmer, subscription, self._member)

    async def reply_inbox(self) -> ReplyInbox:
        """See `Adapter.reply_inbox`."""
        self._connection.check_open()
        return await self._replies.inbox()

    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        """See `Adapter.reply`."""
        self._connection.check_open()
        return await self._replies.send(replies)

    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        """See `Adapter.dead_letters`."""
        return RedisDeadLetters(self._connection, self._topology, group)

    async def groups(self) -> Sequence[GroupInfo]:
        """See `Adapter.groups`."""
        self._connection.check_open()
        return await self._topology.infos()

    async def delete_group(self, group: GroupSpec) -> None:
        """See `Adapter.delete_group`."""
        topic = await self._topology.delete(group)
        if topic is not None:
            # Nobody else does, where that was the last group; what it had not handled is needed by nobody now.
            await self._trimmer.trim(topic, now=True)

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        """See `Adapter.generations`."""
        return await self._topology.generations(topic)

    async def begin_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.begin_generation`."""
        await self._topology.begin_generation(topic)

    async def end_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.end_generation`."""
        await self._topology.end_generation(topic)

    async def ended(self, topic: TopicSpec) -> bool:
        """See `Adapter.ended`."""
        return await self._topology.ended(topic)

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """See `Adapter.finish`."""
        return await self._topology.finish(group, partition)

    async def finished(self, group: GroupSpec) -> Collection[int]:
        """See `Adapter.finished`."""
        return await self._topology.finished(group)

    async def health(self) -> BrokerHealth:
        """See `Adapter.health`. Where the figures of the groups take longer than a probe may, they are unknown."""
        address, begun = self._settings.address, time.monotonic()
        refusing: str | None = None
        unsafe: str | None = None
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                refusing, unsafe = await self._ask_servers()
                groups = await self._topology.infos()
        except TimeoutError:
            # Not the ping: on a slow network it may wait for a connection to be made while others are answered.
            if self._connection.answered < begun:
                return BrokerHealth(False, error=f"Redis at {address} gave no answer within a second")
            groups = [GroupInfo(one.topic.name, one.name) for one in self._topology.groups]
            error = unsafe or f"Redis at {address} did not tell the figures of its groups within a second"
            return BrokerHealth(True, groups, error, refusing, unsafe=unsafe is not None)
        except MessagingError as error:
            return BrokerHealth(False, error=str(error))
        return BrokerHealth(True, groups, unsafe, refusing, unsafe=unsafe is not None)

    async def _ask_servers(self) -> tuple[str | None, str | None]:
        """Why a server that has topics of ours takes no publishes, and what is unsafe about one."""
        refusing: str | None = None
        unsafe: str | None = None
        records = [state.keys.record for state in self._topology.states]
        for key in {self._connection.shard(record): record for record in records or [""]}.values():
            pong, memory, written = await self._connection.exchange(key, (("PING",), MEMORY, WRITE))
            if isinstance(pong, Exception):
                raise translate(pong, "PING")
            refusing = refusing or refusal(self._connection, written)
            unsafe = unsafe or self._unsafe(eviction(memory))
        return refusing, unsafe

    def _unsafe(self, policy: str) -> str | None:
        """What somebody has changed since this program started: such a server is refused then."""
        if not policy or (self._server.evicts and policy.startswith("volatile-")):
            return None
        return (
            f"Redis at {self._settings.address} has got maxmemory-policy {policy}: once its memory is full it evicts "
            f"what messages, or the marks of what was done, are kept in. Set noeviction"
        )
