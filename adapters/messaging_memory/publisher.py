"""Publishing: stored in the caller's order, one result per message (20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.adapter import Unrouted
from messaging.envelope import encode
from messaging.errors import InvalidMessage, MessageTooLarge, NoGroup, PublishError, TopicNotFound
from messaging.message import Receipt
from messaging_memory.log import PREFIX, Record
from messaging_memory.topology import physical_topic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging.adapter import Outgoing
    from messaging_memory.broker import Broker
    from messaging_memory.log import TopicLog


class Publisher:
    """Checks, encodes and stores; `maximum` bounds a message's bytes."""

    def __init__(self, broker: Broker, *, namespace: str | None, maximum: int) -> None:
        self._broker = broker
        self._namespace = namespace
        self._maximum = maximum

    def publish(self, messages: Sequence[Outgoing]) -> list[Receipt | PublishError]:
        """Store each that can be; on an ordered topic nothing of a partition follows one that failed (7)."""
        broker = self._broker
        now = broker.clock.time()
        results: list[Receipt | PublishError] = []
        failed: set[tuple[str, int]] = set()
        stored: dict[TopicLog, int] = {}
        for outgoing in messages:
            place = (outgoing.topic.name, outgoing.partition)
            if failed and place in failed:
                results.append(
                    PublishError(
                        f"message {outgoing.message.id} was not published: an earlier message of partition "
                        f"{outgoing.partition} of ordered topic {outgoing.topic.name} failed; publish both again"
                    )
                )
                continue
            try:
                topic, receipt = self._store(outgoing, now)
            except PublishError as error:
                results.append(error)
                if outgoing.topic.ordered:
                    failed.add(place)
            else:
                results.append(receipt)
                stored[topic] = stored.get(topic, 0) + 1
        for topic, number in stored.items():
            topic.expire(now)
            broker.woken(topic, number)
        return results

    def _store(self, outgoing: Outgoing, now: float) -> tuple[TopicLog, Receipt]:
        message, partition = outgoing.message, outgoing.partition
        topic = self._broker.topics.get(physical_topic(outgoing.topic, self._namespace))
        if topic is None:
            raise TopicNotFound(
                f"message {message.id} was not published: topic {outgoing.topic.name} does not exist on memory "
                f"broker {self._broker.name!r}; declare it first"
            )
        if not 0 <= partition < len(topic.partitions):
            raise InvalidMessage(
                f"message {message.id} was not published: topic {outgoing.topic.name} has "
                f"{len(topic.partitions)} partitions, there is no number {partition}"
            )
        if outgoing.mandatory and not topic.groups:
            raise NoGroup(
                f"message {message.id} was not published: no group takes topic {outgoing.topic.name}; declare one"
            )
        headers = encode(message, prefix=PREFIX)
        size = encoded_size(message.body, headers, self._maximum)
        if size > self._maximum:
            raise MessageTooLarge(
                f"message {message.id} for topic {outgoing.topic.name} has {size} bytes; the memory broker carries "
                f"{self._maximum} (option max_message_bytes): send a reference to the data instead"
            )
        record = Record(message.body, headers, message.content_type, outgoing.reply_to, partition, now)
        self._broker.store(topic, record)
        kind = Receipt if topic.groups else Unrouted
        return topic, kind(message.id, partition, record.position)


def encoded_size(body: bytes, headers: Mapping[str, str], maximum: int) -> int:
    """Bytes of the body and of all headers; exact where it may matter."""
    size = len(body) + sum(map(len, headers)) + sum(map(len, headers.values()))
    if 4 * size <= maximum:  # a character has four bytes at most
        return size
    return len(body) + sum(len(f"{name}{value}".encode()) for name, value in headers.items())
