"""Publishing: a batch of messages becomes a batch per partition, written at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from messaging.adapter import Unrouted
from messaging.errors import ConnectionFailed, MessageTooLarge, MessagingError, NoGroup, PublishError
from messaging.failed_keys import FailedKeys
from messaging.message import make_receipt
from messaging.partition import partition_of
from messaging_kafka.names import recorded
from messaging_kafka.once import OnceWriter
from messaging_kafka.records import parcel
from messaging_kafka.topology import NEVER, TopicState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Outgoing, TopicSpec
    from messaging.message import Receipt
    from messaging_kafka.records import Parcel
    from messaging_kafka.session import Session

GROUPS_KNOWN_FOR = 5.0
"""Seconds for which a topic counts as having a group, or as having none where nobody insists, without a look."""
LOOKED_FOR = 1.0
"""Seconds for which messages wait for such a look, where it is not the first."""
SMALL = 300 * 1024
"""Bytes that headers and key cannot exceed together."""


class Publisher:
    """The publishing half of the adapter."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._once = OnceWriter(session.brokers)
        self._max_bytes = session.settings.max_message_bytes

    async def publish(self, messages: Sequence[Outgoing]) -> list[Receipt | PublishError]:
        """See `Adapter.publish`."""
        results: list[Receipt | PublishError] = [_PENDING] * len(messages)
        states = await self._states(messages)
        failed = FailedKeys()
        parcels: list[Parcel] = []
        sent: list[int] = []
        once = False
        topic: TopicSpec | None = None
        state: TopicState | PublishError = _PENDING
        for at, one in enumerate(messages):
            if one.topic is not topic:
                topic = one.topic
                state = states[id(topic)]
            try:
                if failed and (behind := failed.behind(one)) is not None:
                    raise behind
                if isinstance(state, PublishError):
                    raise state
                parcels.append(self._parcel(one, state))
                sent.append(at)
                if one.once is not None:
                    once = True
            except PublishError as error:
                results[at] = error
                failed.add(one, error)
        if once:
            fates = await self._once.write(parcels, [messages[at].once for at in sent])
        else:
            fates = await self._session.writer.write(parcels)
        topic, confirmed = None, make_receipt
        for at, packed, fate in zip(sent, parcels, fates, strict=True):
            one = messages[at]
            if not isinstance(fate, int):
                results[at] = _told(one, fate)
                self._forget(one.topic)
                continue
            if one.topic is not topic:
                topic = one.topic
                state = states[id(topic)]
                confirmed = make_receipt if isinstance(state, TopicState) and state.routed else Unrouted
            partition = packed.partition
            results[at] = confirmed(one.message.id, partition, f"{partition}/{fate}")
        return results

    async def _states(self, messages: Sequence[Outgoing]) -> dict[int, TopicState | PublishError]:
        """By the identity of what the messages call their topic: of most batches it is one object."""
        states: dict[int, TopicState | PublishError] = {}
        known: TopicSpec | None = None
        for one in messages:
            topic = one.topic
            if topic is not known and id(topic) not in states:
                states[id(topic)] = await self._state(topic, messages)
            known = topic
        return states

    async def _state(self, topic: TopicSpec, messages: Sequence[Outgoing]) -> TopicState | PublishError:
        try:
            state = await self._session.topology.state(topic)
            fresh = time.monotonic() - state.looked <= GROUPS_KNOWN_FOR
            insisting = not state.routed and any(one.mandatory for one in messages if one.topic is topic)
            if insisting or state.looked == NEVER:
                await self._look(state)
            elif not fresh:
                await self._look_again(state)
        except PublishError as error:
            return error
        except MessagingError as error:
            unsent = PublishError(f"nothing was published to topic {topic.name}: {error}")
            unsent.__cause__ = error
            return unsent
        return state

    async def _look_again(self, state: TopicState) -> None:
        """What was known goes on to count where the broker that knows more is away: others may take messages."""
        try:
            async with asyncio.timeout(LOOKED_FOR):
                await self._look(state)
        except (TimeoutError, ConnectionFailed):
            state.looked = time.monotonic()

    async def _look(self, state: TopicState) -> None:
        """Whether the topic has a group. A topic of another program may have groups that we do not know."""
        if state.spec.native is not None:
            state.routed = True
            there = await self._session.brokers.partitions([state.physical])  # its owner may add some
            state.partitions = there.get(state.physical, state.partitions)
        else:
            await self._session.topology.registry.refresh()
            state.routed = self._session.topology.registered(state.spec)
        state.looked = time.monotonic()

    def _forget(self, topic: TopicSpec) -> None:
        """What failed may be gone: look again."""
        state = self._session.topology.topics.get((recorded(topic), topic.native))
        if state is not None:
            state.found = False

    def _parcel(self, one: Outgoing, state: TopicState) -> Parcel:
        message = one.message
        if one.mandatory and not state.routed:
            raise NoGroup(
                f"message {message.id} was not published: no group subscribes to topic {one.topic.name}. "
                f"Run the app that handles it, or declare its group."
            )
        partition = one.partition
        if state.partitions != one.topic.partitions:
            # An adopted topic has as many partitions as it has.
            key = message.key
            partition = partition % state.partitions if key is None else partition_of(key, state.partitions)
        packed = parcel(message, state.physical, partition, reply_to=one.reply_to)
        if len(message.body) + SMALL > self._max_bytes and (size := packed.size) > self._max_bytes:
            raise MessageTooLarge(
                f"message {message.id} for topic {one.topic.name} has {size} bytes with its headers; at most "
                f"{self._max_bytes} fit (option max_message_bytes of the Kafka adapter)"
            )
        return packed


_PENDING = PublishError("not sent")
"""Stands where a result will be; none may be left, for an error that many raise keeps the frames of all."""


def _told(one: Outgoing, fate: PublishError) -> PublishError:
    told = type(fate)(f"message {one.message.id} for topic {one.topic.name}: {fate}")
    told.__cause__ = fate.__cause__
    return told
