"""What this adapter calls its topics and queues."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from string import ascii_letters, digits
from typing import TYPE_CHECKING

from messaging.names import NameRules, physical

if TYPE_CHECKING:
    from messaging.adapter import GroupSpec, TopicSpec
    from messaging_sqs.settings import SQSSettings

FIFO = ".fifo"
LONGEST_QUEUE = 80
"""Amazon SQS quotas, "Queue name", with the suffix."""
LONGEST_TOPIC = 256
_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)?-(?:north|south|east|west|central)+-[0-9]+")
"""As AWS names them; servers that are not AWS have others, which say nothing."""
_CUT = 24
"""What `physical` puts at the end of a name that was too long."""


def is_fifo(name: str) -> bool:
    """Whether a topic or queue of this name, URL or ARN keeps order: the service says it by the suffix."""
    return name.endswith(FIFO)


def twin(name: str) -> str:
    """The name that the same thing would have with the other order."""
    return name.removesuffix(FIFO) if is_fifo(name) else name + FIFO


def queue_name(reference: str) -> str:
    """A queue's name, of its name, ARN or URL."""
    return reference.rpartition(":")[2] if reference.startswith("arn:") else reference.rpartition("/")[2]


def owner_of(reference: str) -> str | None:
    """The account that a queue's ARN or URL names; None of a name, and of a URL that names none."""
    if reference.startswith("arn:"):
        return reference.split(":")[4]
    account = reference.rpartition("/")[0].rpartition("/")[2]
    return account if _ACCOUNT.fullmatch(account) else None


def region_of(reference: str) -> str | None:
    """The region of AWS that an ARN or a URL names; None where it names none."""
    if reference.startswith("arn:"):
        named = [reference.split(":")[3]]
    else:
        named = re.split(r"[/.:]", reference.rpartition("/")[0])
    return next((part for part in named if _REGION.fullmatch(part)), None)


@dataclass(frozen=True)
class Names:
    """The names of one namespace, joined by `-`; letters, digits, `-` and `_` are all that SQS allows."""

    settings: SQSSettings

    @cached_property
    def _queues(self) -> NameRules:
        return self._rules(LONGEST_QUEUE)

    @cached_property
    def _topics(self) -> NameRules:
        return self._rules(LONGEST_TOPIC)

    def _rules(self, longest: int) -> NameRules:
        return NameRules(
            maximum=longest - len(FIFO),
            separator="-",
            legal=ascii_letters + digits + "-_",
            escape="_",
            prefix=self.settings.prefix,
        )

    def topic(self, topic: TopicSpec) -> str:
        """The SNS topic."""
        name = physical(
            self._topics,
            "topic",
            topic=topic.name,
            namespace=self.settings.namespace,
            generation=topic.generation,
        )
        return name + FIFO if topic.ordered else name

    def record(self, topic: TopicSpec) -> str:
        """Without SNS: the queue whose tags are the record of the topic. No message is ever in it."""
        return self._about("topic", topic)

    def generation(self, topic: TopicSpec) -> str:
        """The queue that says that a generation is written to. No message is ever in it."""
        return self._about("generation", topic)

    def queue(self, group: GroupSpec) -> str:
        if group.native is not None:
            return queue_name(group.native)
        return self._of(group, "queue")

    def dead(self, group: GroupSpec) -> str:
        """A FIFO queue can only have a FIFO queue for its dead letters."""
        return self._of(group, "dead")

    def queues_of(self, topic: TopicSpec) -> str:
        """What the names of all queues of the topic's groups begin with; others may begin so too."""
        name = physical(self._queues, "queue", topic=topic.name, namespace=self.settings.namespace)
        return f"{name}-"[: self._queues.maximum - _CUT]

    def reply(self, unique: str) -> str:
        return physical(self._queues, "reply", topic=unique, namespace=self.settings.namespace)

    @property
    def replies(self) -> str:
        """What the names of all reply queues begin with."""
        return self.reply("x").removesuffix("x")

    @cached_property
    def reply_pattern(self) -> re.Pattern[str]:
        """The addresses that an inbox of ours may have."""
        return re.compile(re.escape(self.replies) + "[0-9a-f]{32}")

    def _about(self, role: str, topic: TopicSpec) -> str:
        return physical(
            self._queues,
            role,
            topic=topic.name,
            namespace=self.settings.namespace,
            generation=topic.generation,
        )

    def _of(self, group: GroupSpec, role: str) -> str:
        name = physical(
            self._queues,
            role,
            topic=group.topic.name,
            group=group.name,
            namespace=self.settings.namespace,
            generation=group.topic.generation,
        )
        return name + FIFO if group.ordered else name
