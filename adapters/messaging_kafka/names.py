"""What this adapter calls its topics and groups on Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters, digits
from typing import TYPE_CHECKING

from messaging.names import NameRules, check_namespace, physical

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec

TOPICS = NameRules(
    maximum=249, separator=".", escape="_", legal=ascii_letters + digits + "._-", prefix="messaging"
)
"""Kafka takes 249 of `[A-Za-z0-9._-]`, and refuses a name that differs from another only by `.` for `_`."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one namespace. Groups are named by the same rules as topics."""

    namespace: str | None

    def topic(self, topic: TopicSpec) -> str:
        return topic.native or physical(
            TOPICS, "topic", topic=topic.name, namespace=self.namespace, generation=topic.generation
        )

    def group(self, group: GroupSpec) -> str:
        """The consumer group."""
        return group.native or self._of(group, "group")

    def retry(self, group: GroupSpec) -> str:
        """The ladder of delays of an unordered group: each partition is a tier."""
        return self._of(group, "retry")

    def redrive(self, group: GroupSpec) -> str:
        """The tail that redriven messages of an ordered group enter, with the partitions of its topic."""
        return self._of(group, "redrive")

    def dead(self, group: GroupSpec) -> str:
        return self._of(group, "dead")

    @property
    def registry(self) -> str:
        """Where the records of topics and groups are."""
        return self._shared("registry")

    @property
    def replies(self) -> str:
        """Where all reply inboxes of the namespace are."""
        return self._shared("replies")

    def _shared(self, role: str) -> str:
        parts = [TOPICS.prefix, role]
        if self.namespace is not None:
            escaped = check_namespace(self.namespace).replace("_", "_5f").replace(".", "_2e")
            parts.insert(1, f"{escaped}.")
        return ".".join(parts)

    def _of(self, group: GroupSpec, role: str) -> str:
        return physical(
            TOPICS,
            role,
            topic=group.topic.name,
            group=group.name,
            namespace=self.namespace,
            generation=group.topic.generation,
        )


def recorded(topic: TopicSpec) -> str:
    """What a generation of a topic is called in the registry."""
    return topic.name if topic.generation == 1 else f"{topic.name}#{topic.generation}"
