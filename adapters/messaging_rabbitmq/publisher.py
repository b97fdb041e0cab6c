"""Publishing: from messages to parcels, and from their fates to results, in the order of the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.adapter import Outgoing, Unrouted
from messaging.errors import MessagingError, NoGroup, PublishError
from messaging.failed_keys import FailedKeys
from messaging.message import make_receipt
from messaging_rabbitmq.properties import packed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging.adapter import TopicSpec
    from messaging.message import Receipt
    from messaging_rabbitmq.frames import Parcel
    from messaging_rabbitmq.sender import Fate
    from messaging_rabbitmq.session import Session

_PENDING = PublishError("not sent")
"""Stands where a result will be; none may be left, for an error that many raise keeps the frames of all."""


class Publisher:
    """Publishes what one adapter is given. Of an ordered topic nothing is stored behind what failed of its key (7)."""

    def __init__(self, session: Session) -> None:
        self._settings = session.settings
        self._names = session.names
        self._consuming = session.consuming
        self._publishing = session.publishing
        self._sender = session.sender
        self._topology = session.topology
        self._careful: set[str] = set()
        """Ordered topics of which a message was once not confirmed."""

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """See `Adapter.publish`."""
        self._publishing.check_open()
        results: list[Receipt | PublishError] = [_PENDING] * len(messages)
        parcels, sent, topics = self._parcels(messages, await self._missing_topics(messages), results)
        spread = not any(topic.ordered for topic in topics)
        lane = parcels[0].exchange if len(topics) == 1 and parcels else None
        failed = FailedKeys()
        for wave in self._waves(messages, sent):
            going = wave
            if failed:
                told = {at: failed.behind(messages[sent[at]]) for at in wave}
                going = [at for at in wave if told[at] is None]
                for at, behind in told.items():
                    results[sent[at]] = behind or _PENDING
            fates = await self._sender.send([parcels[at] for at in going], lane, spread=spread)
            for at, fate in zip(going, fates, strict=True):
                one = messages[sent[at]]
                if fate == "stored":
                    results[sent[at]] = make_receipt(one.message.id, one.partition, None)
                    continue
                # What no queue took is not stored either where one before it failed.
                behind = failed.behind(one) if fate == "unrouted" else None
                result = results[sent[at]] = behind or _result(one, fate)
                if isinstance(result, PublishError):
                    failed.add(one, result)
                # Without a cause the broker was silent: that says nothing of the topic.
                if isinstance(fate, PublishError) and fate.__cause__ is not None:
                    self._topology.unsure(one.topic)
                if one.topic.ordered and isinstance(fate, PublishError):
                    self._careful.add(one.topic.name)
        return results

    async def _missing_topics(self, messages: Sequence[Outgoing]) -> dict[tuple[str, int], PublishError]:
        missing: dict[tuple[str, int], PublishError] = {}
        known: TopicSpec | None = None
        for one in messages:
            topic = one.topic
            if topic is known or _place(topic) in missing:
                continue
            try:
                await self._topology.exchange_exists(topic)
            except PublishError as error:
                missing[_place(topic)] = error
            except MessagingError as error:
                unsent = PublishError(f"nothing was published to topic {topic.name}: {error}")
                unsent.__cause__ = error
                missing[_place(topic)] = unsent
            else:
                known = topic
        return missing

    def _parcels(
        self,
        messages: Sequence[Outgoing],
        missing: Mapping[tuple[str, int], PublishError],
        results: list[Receipt | PublishError],
    ) -> tuple[list[Parcel], Sequence[int], Sequence[TopicSpec]]:
        """What can be sent, the places of it, and the topics in turn; the results of all else."""
        failed = FailedKeys()
        parcels: list[Parcel] = []
        sent: list[int] = []
        limit = self._settings.max_message_bytes
        table_limit = self._consuming.table_limit
        known: TopicSpec | None = None
        exchange = ""
        topics: list[TopicSpec] = []
        for index, one in enumerate(messages):
            topic = one.topic
            if topic is not known:
                known = topic
                exchange = self._names.exchange(topic)
                topics.append(topic)
            error = None
            if missing or failed:
                error = missing.get(_place(topic)) or failed.behind(one)
            if error is None:
                # An adopted exchange routes by the topic's name: it knows nothing of partitions.
                routing_key = str(one.partition) if topic.native is None else topic.name
                try:
                    parcels.append(
                        packed(
                            exchange,
                            routing_key,
                            one.message,
                            limit=limit,
                            table_limit=table_limit,
                            reply_to=one.reply_to,
                        )
                    )
                    sent.append(index)
                    continue
                except PublishError as invalid:
                    error = invalid
                    failed.add(one, invalid)
            results[index] = error
        return parcels, sent, topics

    def _waves(self, messages: Sequence[Outgoing], sent: Sequence[int]) -> Sequence[Sequence[int]]:
        """Places in `sent`, to be handed over wave by wave: each finds room at once, or not at all.

        The broker may refuse one message (basic.nack: a full queue) and take the next that is already on its way. Of
        an ordered topic where that has happened, a key's next message waits until the one before it is confirmed (7).
        """
        most = self._sender.most
        if not (self._settings.confirm_each or self._careful):
            return [range(at, min(at + most, len(sent))) for at in range(0, len(sent), most)]
        waves: list[list[int]] = [[]]
        depth: dict[tuple[str, str | bytes | None], int] = {}
        for at, index in enumerate(sent):
            one = messages[index]
            wave = 0
            if one.topic.ordered and (self._settings.confirm_each or one.topic.name in self._careful):
                wave = depth.get(_lane(one), 0)
                depth[_lane(one)] = wave + 1
            if wave == len(waves):
                waves.append([])
            waves[wave].append(at)
        return [wave[at : at + most] for wave in waves for at in range(0, len(wave), most)]


def _lane(one: Outgoing) -> tuple[str, str | bytes | None]:
    return one.topic.name, one.message.key


def _result(one: Outgoing, fate: Fate) -> Receipt | PublishError:
    if isinstance(fate, PublishError):
        return fate
    if one.mandatory:
        return NoGroup(
            f"message {one.message.id} was not published: no group subscribes to topic {one.topic.name}. "
            f"Run the app that handles it, or declare its group."
        )
    return Unrouted(one.message.id, one.partition)


def _place(topic: TopicSpec) -> tuple[str, int]:
    return topic.name, topic.generation
