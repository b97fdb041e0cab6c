"""The names of all keys. Every key of a topic carries one hash tag, so that a topic lives on one shard.

Portable names hold neither `:` nor braces, so these joins are injective (17). A key is
`<prefix>{<namespace>::<topic>}:<role>[:<group>][:<partition>]`; the namespace and its colons are absent without one. A
later generation has `g<number>:` before the role, which no role looks like.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from messaging.errors import ConfigurationError
from messaging.names import check_group, check_topic

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec
    from messaging_redis.settings import RedisSettings


class TopicKeys:
    """The keys of one topic. An adopted topic is the one stream it names; what is ours stands beside it."""

    def __init__(self, settings: RedisSettings, spec: TopicSpec) -> None:
        self.native = spec.native
        self.partitions = 1 if spec.native is not None else spec.partitions
        if spec.native is not None:
            self.root = f"{settings.prefix}adopted:{{{_hash_tag(spec.native)}}}:{spec.native}"
        else:
            namespace = "" if settings.namespace is None else f"{settings.namespace}::"
            first = f"{settings.prefix}{{{namespace}{check_topic(spec.name)}}}"
            self.root = first if spec.generation == 1 else f"{first}:g{spec.generation}"
            self.generations = f"{first}:generations"
        self.record = f"{self.root}:topic"
        self.ended = f"{self.root}:ended"
        """There where nobody writes to a former generation any more."""
        self.groups = f"{self.root}:groups"
        self.deleted = f"{self.root}:deleted"
        """Groups that were deleted, by when: what is neither here nor on record was lost."""
        self.trimmed = f"{self.root}:trimmed"
        self.once = f"{self.root}:once"
        """Positions by the mark of what is stored once; with `:order`, when each came."""
        self.streams = [self.stream(partition) for partition in range(self.partitions)]

    def stream(self, partition: int) -> str:
        """Where the messages of a partition are."""
        return f"{self.root}:{partition}" if self.native is None else self.native


class GroupKeys:
    """The keys of one group of a topic."""

    def __init__(self, topic: TopicKeys, spec: GroupSpec) -> None:
        self.topic = topic
        self.name = spec.native if spec.native is not None else check_group(spec.name)
        """The name of the consumer group on the streams."""
        suffix = spec.name
        root = topic.root
        self.retry = f"{root}:retry:{suffix}"
        self.delayed = f"{root}:delayed:{suffix}"
        self.guard = f"{root}:guard:{suffix}"
        self.dead = f"{root}:dead:{suffix}"
        self.members = f"{root}:members:{suffix}"
        self.leases = f"{root}:leases:{suffix}"
        self.failures = f"{root}:failures:{suffix}"
        self.finished = f"{root}:finished:{suffix}"
        """Partitions of a former generation that the group has handled."""
        self._redrive = f"{root}:redrive:{suffix}"

    def redrive(self, partition: int) -> str:
        """The tail that redriven messages of a partition of an ordered group enter."""
        return f"{self._redrive}:{partition}"

    @property
    def own(self) -> list[str]:
        """All that belongs to the group beside its place in the topic's streams."""
        redrives = [self.redrive(partition) for partition in range(self.topic.partitions)]
        return [
            self.retry,
            self.delayed,
            self.guard,
            self.dead,
            self.members,
            self.leases,
            self.failures,
            self.finished,
            *redrives,
        ]


def reply_key(settings: RedisSettings, inbox: str) -> str:
    """The address of a reply inbox."""
    return f"{settings.prefix}reply:{settings.namespace or ''}:{inbox}"


def reply_pattern(settings: RedisSettings) -> re.Pattern[str]:
    """What the address of an inbox of ours looks like; nothing else is ever written to (19)."""
    return re.compile(re.escape(reply_key(settings, "")) + "[0-9a-f]{32}")


def _hash_tag(key: str) -> str:
    """The part of a key that decides its slot, as the cluster specification says."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    if "}" in key or "{" in key:
        raise ConfigurationError(f"the adopted stream {key!r} has braces that name no hash slot")
    return key
