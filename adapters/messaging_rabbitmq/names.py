"""What this adapter calls its exchanges and queues."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from messaging.names import NameRules, physical
from messaging_rabbitmq.tiers import SPARES

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec

# AMQP 0-9-1: an exchange's name has at most 127 bytes, a queue's 255. The text of a refusal has 255 too, and must hold
# an exchange's name and those of two alternates.
EXCHANGES = NameRules(maximum=80)
QUEUES = NameRules(maximum=255)


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one namespace. `:` separates parts and never occurs in a topic or group."""

    namespace: str | None

    def exchange(self, topic: TopicSpec) -> str:
        return topic.native or self._about(EXCHANGES, "topic", topic)

    def alternate(self, topic: TopicSpec) -> str:
        """Where foreign routing keys go. It is an argument of the topic's exchange, so that the broker itself
        keeps, compares and tells the count of partitions and whether they are ordered (16).
        """
        order = ":ordered" if topic.ordered else ""
        whose = sha256(self.exchange(topic).encode()).hexdigest()[:12]
        return f"p{topic.partitions}{order}:{whose}"

    def ingress(self, topic: TopicSpec) -> str:
        return self._about(QUEUES, "ingress", topic)

    def registry(self, topic: TopicSpec) -> str:
        return self._about(QUEUES, "groups", topic)

    def written(self, topic: TopicSpec) -> str:
        """The exchange that marks a generation as begun."""
        return self._about(EXCHANGES, "written", topic)

    def ended(self, topic: TopicSpec) -> str:
        """The exchange that marks a former generation to which nobody writes any more."""
        return self._about(EXCHANGES, "ended", topic)

    def finished(self, group: GroupSpec, partition: int) -> str:
        """The exchange that marks a partition of a former generation as handled."""
        return self._of(group, "finished", partition, rules=EXCHANGES)

    def queue(self, group: GroupSpec, partition: int | None = None) -> str:
        """The queue that a group consumes: one for each partition where it keeps order."""
        return group.native or self._of(group, "queue", partition)

    def queues(self, group: GroupSpec) -> list[str]:
        if not group.ordered:
            return [self.queue(group)]
        return [self.queue(group, partition) for partition in range(group.topic.partitions)]

    def declared(self, group: GroupSpec) -> list[str]:
        """Queues of messages that are there as soon as the group is declared."""
        return [*self.queues(group), self.dead(group), *(() if group.ordered else (self.suspects(group),))]

    def suspects(self, group: GroupSpec) -> str:
        return self._of(group, "suspects")

    def dead(self, group: GroupSpec) -> str:
        return self._of(group, "dead")

    def tier(self, group: GroupSpec, milliseconds: int) -> str:
        return self._of(group, "delay", milliseconds)

    def members(self, group: GroupSpec) -> list[str]:
        """The queue that the members consume, and those that take its place while its node is away."""
        return [self._of(group, "members", spare or None) for spare in range(1 + SPARES)]

    def own(self, group: GroupSpec, partition: int, spare: int = 0) -> str:
        """The lock of a partition; or a spare one, which has the number of no partition, so that permissions hold."""
        return self._of(group, "own", partition + spare * group.topic.partitions)

    def guard(self, group: GroupSpec, partition: int, spare: int = 0) -> str:
        """Marks of a partition; spare ones are numbered as those of `own`."""
        return self._of(group, "guard", partition + spare * group.topic.partitions)

    def reply(self, unique: str) -> str:
        return physical(QUEUES, "reply", topic=unique, namespace=self.namespace)

    def _about(self, rules: NameRules, role: str, topic: TopicSpec) -> str:
        return physical(rules, role, topic=topic.name, namespace=self.namespace, generation=topic.generation)

    def _of(
        self, group: GroupSpec, role: str, partition: int | None = None, *, rules: NameRules = QUEUES
    ) -> str:
        return physical(
            rules,
            role,
            topic=group.topic.name,
            group=group.name,
            partition=partition,
            namespace=self.namespace,
            generation=group.topic.generation,
        )
