"""Publishing: batches of ten side by side; of an ordered topic, one message of a key after the other.

Each entry of a batch may fail alone, and later ones of its key would pass it: so a batch holds one message of a key,
and the next follows when it is stored (7). Without SNS, or where a message is larger than SNS takes, it is sent to
each group's queue.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from messaging.adapter import Unrouted
from messaging.errors import (
    ConfigurationError,
    MessageTooLarge,
    MessagingError,
    NoGroup,
    PublishError,
    PublishUncertain,
    TopicNotFound,
)
from messaging.failed_keys import FailedKeys
from messaging.message import Receipt
from messaging.slots import Slots
from messaging_sqs import copies
from messaging_sqs.batches import MOST, in_batches
from messaging_sqs.bounds import Bounds
from messaging_sqs.connection import Absent, Interrupted
from messaging_sqs.entries import LARGEST, ROOM, Entry, message_group, pack, unique
from messaging_sqs.names import is_fifo
from messaging_sqs.settings import SNS_DEFAULT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from messaging.adapter import Outgoing
    from messaging.message import Message
    from messaging_sqs.connection import Connection
    from messaging_sqs.state import TopicState
    from messaging_sqs.topology import TopologyKeeper

Result: TypeAlias = "Receipt | PublishError"


@dataclass(slots=True, eq=False)
class _Item:
    at: int
    outgoing: Outgoing
    entry: Entry
    fifo: dict[str, str]
    """What makes it one of a FIFO topic or queue."""


SPARE = 2
"""Threads that the requests of one topic leave to all else."""


class Publisher:
    """Stores batches of messages, one result each."""

    def __init__(self, connection: Connection, topology: TopologyKeeper) -> None:
        self._connection = connection
        self._topology = topology
        self._settings = connection.settings
        most = max(1, self._settings.threads - SPARE)
        self._slots: defaultdict[str, Slots] = defaultdict(lambda: Slots(most))
        """Of each topic, for its requests under way: one that is slow or hangs must not take every thread."""

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Result]:
        """See `Adapter.publish`."""
        results: list[Result] = [_PENDING] * len(messages)
        by_topic: dict[tuple[str, str | None, int], list[int]] = {}
        for at, one in enumerate(messages):
            by_topic.setdefault((one.topic.name, one.topic.native, one.topic.generation), []).append(at)
        if len(by_topic) == 1:
            await self._publish_to(range(len(messages)), messages, results)
        else:
            await asyncio.gather(
                *(self._publish_to(places, messages, results) for places in by_topic.values())
            )
        return results

    async def _publish_to(
        self, places: Sequence[int], messages: Sequence[Outgoing], results: list[Result]
    ) -> None:
        state = self._topology.state(messages[places[0]].topic)
        try:
            # No group is never believed for long.
            await self._topology.look(state, within=self._settings.groups_refresh if state.routed else 0.0)
        except MessagingError as error:
            for at in places:
                results[at] = _not_sent(messages[at], error)
            return
        items = self._checked(state, places, messages, results)
        if state.spec.ordered:
            await self._in_order(state, items, results)
        else:
            await self._send(state, items, results)

    def _checked(
        self,
        state: TopicState,
        places: Sequence[int],
        messages: Sequence[Outgoing],
        results: list[Result],
    ) -> list[_Item]:
        """What can be sent; on an ordered topic, what is behind a refused message of its key is not (7)."""
        most = min(self._settings.max_message_bytes, LARGEST - ROOM)
        items: list[_Item] = []
        failed = FailedKeys()
        for at in places:
            one = messages[at]
            error = failed.behind(one) if failed else None
            if error is None and one.mandatory and (state.blind or not state.routed):
                error = _without_group(one.message, state.blind)
            if error is None:
                entry = pack(one.message, reply_to=one.reply_to)
                if entry.size <= most:
                    items.append(_Item(at, one, entry, _fifo(one)))
                    continue
                error = _too_large(one.message, entry.size, most)
            results[at] = error
            failed.add(one, error)
        return items

    # --- send --------------------------------------------------------------------------------------------------

    async def _in_order(self, state: TopicState, items: Sequence[_Item], results: list[Result]) -> None:
        chains: dict[Any, deque[_Item]] = {}
        for item in items:
            chains.setdefault(item.outgoing.message.key, deque()).append(item)
        all_of = list(chains.values())
        await asyncio.gather(
            *(self._in_turn(state, all_of[at : at + MOST], results) for at in range(0, len(all_of), MOST))
        )

    async def _in_turn(self, state: TopicState, chains: list[deque[_Item]], results: list[Result]) -> None:
        """The first of each key, then the second of each; what follows a failed one fails with it."""
        failed = FailedKeys()
        while chains:
            await self._send(state, [chain[0] for chain in chains], results)
            for chain in chains:
                first = chain.popleft()
                if isinstance(error := results[first.at], PublishError):
                    failed.add(first.outgoing, error)
                while chain and (behind := failed.behind(chain[0].outgoing)) is not None:
                    results[chain.popleft().at] = behind
            chains = [chain for chain in chains if chain]

    async def _send(self, state: TopicState, items: Sequence[_Item], results: list[Result]) -> None:
        if state.arn is None:
            await self._to_queues(state, items, results)
            return
        large = [item for item in items if item.entry.size > state.limit]
        if large:
            items = [item for item in items if item.entry.size <= state.limit]
            await self._too_large_for_sns(state, large, results)
        if items:
            await self._to_topic(state, items, results)

    async def _to_topic(self, state: TopicState, items: Sequence[_Item], results: list[Result]) -> None:
        fates = await in_batches(
            self._connection,
            "sns",
            "publish_batch",
            [item.entry.to_topic(**item.fifo) for item in items],
            field="PublishBatchRequestEntries",
            sizes=[item.entry.size for item in items],
            most_bytes=SNS_DEFAULT_BYTES,
            once=not state.spec.ordered,
            slots=self._slots[state.spec.name],
            TopicArn=state.arn,
        )
        kind = Receipt if state.routed else Unrouted
        for item, fate in zip(items, fates, strict=True):
            if isinstance(fate, MessagingError):
                results[item.at] = self._failed(state, item, fate)
            else:
                one = item.outgoing
                results[item.at] = kind(
                    one.message.id, one.partition, fate.get("SequenceNumber") or fate["MessageId"]
                )

    async def _too_large_for_sns(
        self, state: TopicState, items: Sequence[_Item], results: list[Result]
    ) -> None:
        """Straight to the groups' queues, which take more; in no order with what goes through SNS."""
        try:
            await self._topology.look(state, within=0.0)
            refused = bool(state.strangers or state.spec.ordered or state.blind)
            state.queues = [] if refused else await self._topology.urls(state)
        except ConfigurationError:
            refused = True
        except MessagingError as error:
            for item in items:
                results[item.at] = _not_sent(item.outgoing, error)
            return
        if not refused:
            await self._to_queues(state, items, results)
            return
        for item in items:
            results[item.at] = MessageTooLarge(
                f"message {item.outgoing.message.id} of topic {state.spec.name} has {item.entry.size} bytes; its SNS "
                f"topic takes {state.limit} (MaximumMessageSize)"
            )

    async def _to_queues(self, state: TopicState, items: Sequence[_Item], results: list[Result]) -> None:
        """One send for each group's queue: not atomic, so what only some have is uncertain."""
        if len(state.queues) == 1:
            # In this task: another one costs two more turns of the loop, each of which waits for busy threads.
            fates = [await self._to_queue(state, state.queues[0], items)]
        else:
            fates = await asyncio.gather(*(self._to_queue(state, url, items) for url in state.queues))
        kind = Receipt if state.routed else Unrouted
        for number, item in enumerate(items):
            one = item.outgoing
            errors = [error for fate in fates if (error := fate[number]) is not None]
            if not errors:
                results[item.at] = kind(one.message.id, one.partition)
            elif len(errors) < len(fates):
                uncertain = PublishUncertain(
                    f"message {one.message.id} for topic {state.spec.name!r} is stored for {len(fates) - len(errors)} "
                    f"of {len(fates)} groups: {errors[0]}. Publish it again with the same id if handlers are "
                    f"idempotent."
                )
                uncertain.__cause__ = errors[0]
                results[item.at] = uncertain
            else:
                interrupted = [error for error in errors if isinstance(error, Interrupted)]
                results[item.at] = self._failed(state, item, (interrupted or errors)[0])

    async def _to_queue(
        self, state: TopicState, url: str, items: Sequence[_Item]
    ) -> list[MessagingError | None]:
        fifo = is_fifo(url)
        kept = state.spec.retention or self._settings.retention
        longest = Bounds(self._settings.max_receives, int(kept)).step
        parcels = [(item.entry, item.fifo if fifo else _delay(item, longest)) for item in items]
        return await copies.send(self._connection, url, parcels, self._slots[state.spec.name])

    def _failed(self, state: TopicState, item: _Item, error: MessagingError) -> PublishError:
        if isinstance(error, Absent):
            state.looked, state.gone = -1e9, True
            return self._topology.absent(state)
        if isinstance(error, Interrupted):
            message = item.outgoing.message
            uncertain = PublishUncertain(
                f"the fate of message {message.id} for topic {message.topic!r} is unknown: {error}. Publish it again "
                f"with the same id if handlers are idempotent."
            )
            uncertain.__cause__ = error
            return uncertain
        return _not_sent(item.outgoing, error)


_PENDING = PublishError("not sent")
"""Stands where a result will be; none may be left, for an error that many raise keeps the frames of all."""


def _delay(item: _Item, longest: int) -> dict[str, int]:
    """The first step of a publish delay, without a hand-over: a topic of SNS has none, so members take it there (5)."""
    due = item.outgoing.message.not_before
    if due is None or item.outgoing.topic.ordered:
        return {}
    return {"DelaySeconds": copies.step(due.timestamp() - time.time(), longest)}


def _fifo(one: Outgoing) -> dict[str, str]:
    if not one.topic.ordered:
        return {}
    return {
        "MessageGroupId": message_group(one.message.key),
        "MessageDeduplicationId": one.once or unique(),
    }


def _too_large(message: Message, size: int, most: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"message {message.id} of topic {message.topic} has {size} bytes as SQS counts them (a body that is no text "
        f"travels as base64); at most {most} are allowed. Put large content elsewhere and send a reference."
    )


def _without_group(message: Message, blind: MessagingError | None) -> PublishError:
    if blind is not None:
        return PublishError(
            f"message {message.id} was not published: mandatory=True needs to know whether topic {message.topic} has "
            f"a group: {blind}"
        )
    return NoGroup(
        f"message {message.id} was not published: no group subscribes to topic {message.topic}. "
        f"Run the app that handles it, or declare its group."
    )


def _not_sent(outgoing: Outgoing, error: MessagingError) -> PublishError:
    if isinstance(error, TopicNotFound):
        return error
    failure = PublishError(
        f"message {outgoing.message.id} for topic {outgoing.topic.name!r} was not sent: {error}"
    )
    failure.__cause__ = error
    return failure
