"""Publishing: stored in the caller's order, one result per message (20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.adapter import Unrouted
from messaging.errors import InvalidMessage, MessageTooLarge, NoGroup, PublishError, TopicNotFound
from messaging.message import make_receipt
from messaging_memory.record import Packing
from messaging_memory.topology import physical_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Outgoing, TopicSpec
    from messaging.message import Receipt
    from messaging_memory.broker import Broker
    from messaging_memory.log import TopicLog


class Publisher:
    """Checks, encodes and stores; `maximum` bounds a message's bytes."""

    def __init__(self, broker: Broker, *, namespace: str | None, maximum: int) -> None:
        self._broker = broker
        self._namespace = namespace
        self._maximum = maximum
        self._packing = Packing()

    def publish(self, messages: Sequence[Outgoing]) -> list[Receipt | PublishError]:
        """Store each that can be; on an ordered topic nothing of a partition follows one that failed (7)."""
        broker = self._broker
        now = broker.clock.time()
        results: list[Receipt | PublishError] = []
        failed: set[tuple[str, int]] = set()
        stored: set[TopicLog] = set()
        last: TopicSpec | None = None
        topic: TopicLog | None = None
        for outgoing in messages:
            spec = outgoing.topic
            if spec is not last:
                last = spec
                topic = broker.topics.get(physical_topic(spec, self._namespace))
            try:
                if failed and (spec.name, outgoing.partition) in failed:
                    raise _follows_failed(outgoing)
                if topic is None:
                    raise self._not_found(outgoing)
                results.append(self._store(topic, outgoing, now))
                stored.add(topic)
            except PublishError as error:
                results.append(error)
                if spec.ordered:
                    failed.add((spec.name, outgoing.partition))
        for log in stored:
            broker.stored(log, len(messages))
        return results

    def _store(self, topic: TopicLog, outgoing: Outgoing, now: float) -> Receipt:
        message, partition = outgoing.message, outgoing.partition
        if not 0 <= partition < len(topic.partitions):
            raise InvalidMessage(
                f"message {message.id} was not published: topic {outgoing.topic.name} has "
                f"{len(topic.partitions)} partitions, there is no number {partition}"
            )
        if outgoing.mandatory and not topic.groups:
            raise NoGroup(
                f"message {message.id} was not published: no group takes topic {outgoing.topic.name}; declare one"
            )
        row, size = self._packing.row(message, now, outgoing.reply_to, self._maximum)
        if size > self._maximum:
            raise MessageTooLarge(
                f"message {message.id} for topic {outgoing.topic.name} has {size} bytes, the memory broker "
                f"carries {self._maximum} (option max_message_bytes): send a reference to the data instead"
            )
        once = outgoing.once
        if once is not None and once in topic.once:
            return make_receipt(message.id, partition, topic.once[once])
        position = topic.partitions[partition].append(row)
        if once is not None:
            topic.remember(once, position)
        make = make_receipt if topic.groups else Unrouted
        return make(message.id, partition, position)

    def _not_found(self, outgoing: Outgoing) -> TopicNotFound:
        return TopicNotFound(
            f"message {outgoing.message.id} was not published: topic {outgoing.topic.name} does not exist on "
            f"memory broker {self._broker.name!r}; declare it first"
        )


def _follows_failed(outgoing: Outgoing) -> PublishError:
    return PublishError(
        f"message {outgoing.message.id} was not published: an earlier message of partition "
        f"{outgoing.partition} of ordered topic {outgoing.topic.name} failed; publish both again"
    )
