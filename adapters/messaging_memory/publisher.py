"""Publishing: stored in the caller's order, one result per message (20)."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from messaging.adapter import Unrouted
from messaging.errors import InvalidMessage, MessageTooLarge, NoGroup, PublishError, TopicNotFound
from messaging.failed_keys import FailedKeys
from messaging.message import make_receipt
from messaging_memory.record import Packing
from messaging_memory.topology import physical_topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from messaging.adapter import Outgoing
    from messaging.message import Receipt
    from messaging_memory.broker import Broker
    from messaging_memory.log import TopicLog

_topic = attrgetter("topic")


class Publisher:
    """Checks, encodes and stores; `maximum` bounds a message's bytes."""

    def __init__(self, broker: Broker, *, namespace: str | None, maximum: int) -> None:
        self._broker = broker
        self._namespace = namespace
        self._maximum = maximum
        self._packing = Packing()

    def publish(self, messages: Sequence[Outgoing]) -> list[Receipt | PublishError]:
        """Store each that can be; on an ordered topic nothing of a key follows one that failed (7)."""
        broker = self._broker
        now = broker.clock.time()
        results: list[Receipt | PublishError] = []
        failed = FailedKeys()
        logs: set[TopicLog] = set()
        for spec, some in groupby(messages, key=_topic):
            log = broker.topics.get(physical_topic(spec, self._namespace))
            if log is None:
                results += [self._not_found(outgoing) for outgoing in some]
            else:
                logs.add(log)
                results += self._store(log, some, now, failed)
        for log in logs:
            broker.stored(log, len(messages))
        return results

    def _store(
        self, topic: TopicLog, messages: Iterable[Outgoing], now: float, failed: FailedKeys
    ) -> list[Receipt | PublishError]:
        """Store these, of one topic."""
        partitions, row, maximum = topic.partitions, self._packing.row, self._maximum
        make = make_receipt if topic.groups else Unrouted
        results: list[Receipt | PublishError] = []
        for outgoing in messages:
            message, partition, once = outgoing.message, outgoing.partition, outgoing.once
            try:
                if failed or outgoing.mandatory or not 0 <= partition < len(partitions):
                    _check(topic, outgoing, failed)
                packed, size = row(message, now, outgoing.reply_to, maximum)
                if size > maximum:
                    raise _too_large(outgoing, size, maximum)
            except PublishError as error:
                results.append(error)
                failed.add(outgoing, error)
                continue
            if once is not None and once in topic.once:
                results.append(make_receipt(message.id, partition, topic.once[once]))
                continue
            position = partitions[partition].append(packed)
            if once is not None:
                topic.remember(once, position)
            results.append(make(message.id, partition, position))
        return results

    def _not_found(self, outgoing: Outgoing) -> TopicNotFound:
        return TopicNotFound(
            f"message {outgoing.message.id} was not published: topic {outgoing.topic.name} does not exist on "
            f"memory broker {self._broker.name!r}; declare it first"
        )


def _check(topic: TopicLog, outgoing: Outgoing, failed: FailedKeys) -> None:
    """Raises what keeps a message from being stored."""
    message, partition = outgoing.message, outgoing.partition
    if (behind := failed.behind(outgoing)) is not None:
        raise behind
    if not 0 <= partition < len(topic.partitions):
        raise InvalidMessage(
            f"message {message.id} was not published: topic {outgoing.topic.name} has "
            f"{len(topic.partitions)} partitions, there is no number {partition}"
        )
    if outgoing.mandatory and not topic.groups:
        raise NoGroup(
            f"message {message.id} was not published: no group subscribes to topic {outgoing.topic.name}. "
            f"Run the app that handles it, or declare its group."
        )


def _too_large(outgoing: Outgoing, size: int, maximum: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"message {outgoing.message.id} for topic {outgoing.topic.name} has {size} bytes, the memory broker "
        f"carries {maximum} (option max_message_bytes): send a reference to the data instead"
    )
