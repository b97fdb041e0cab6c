"""Publishing: one exchange per batch, a result per message.

Messages of one partition of an ordered topic go through a script that stops at the first refusal (7); a single
message is sent as it is. Nothing is ever trimmed here: MAXLEN drops what nobody has read.
"""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from messaging.adapter import Topology, Unrouted
from messaging.errors import (
    ConnectionFailed,
    MessagingError,
    NoGroup,
    PublishError,
    PublishUncertain,
    TopicNotFound,
)
from messaging.failed_keys import FailedKeys
from messaging.message import make_receipt
from messaging_redis.connection import Interrupted, translate
from messaging_redis.entries import encode_entry, exceeds, too_large
from messaging_redis.packing import pack_addition
from messaging_redis.scripts import PUBLISH, PUBLISH_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Outgoing, TopicSpec
    from messaging.message import Receipt
    from messaging_redis.connection import Connection
    from messaging_redis.entries import Fields
    from messaging_redis.line import Argument, Command
    from messaging_redis.topology import TopicState, TopologyKeeper
    from messaging_redis.trimming import Trimmer

_MOST_COMMANDS = 256
_MOST_ARGUMENTS = 4000
"""What one script call may push onto Lua's stack, with room to spare."""
_KNOWN_FOR = 300_000
"""Milliseconds for which the server knows what is stored once."""
_GROUPS_KNOWN_FOR = 5.0
"""Seconds for which a topic counts as having a group without looking again."""


class _Item:
    """One message on its way: its place in the batch, and its entry."""

    __slots__ = ("at", "fields", "outgoing", "packed", "partition", "state", "stream")

    def __init__(self, at: int, outgoing: Outgoing, state: TopicState) -> None:
        self.at = at
        self.outgoing = outgoing
        self.state = state
        self.partition = outgoing.partition if state.spec.native is None else 0
        self.stream = state.keys.streams[self.partition]
        self.packed = b""
        """The whole command, where it goes alone."""
        self.fields: Fields = []
        """What a script stores."""
        if outgoing.topic.ordered or outgoing.once is not None:
            self.fields = encode_entry(outgoing.message, outgoing.reply_to)
        else:
            self.packed = pack_addition(self.stream, outgoing.message, outgoing.reply_to)

    def exceeds(self, most: int) -> int:
        """Bytes of the entry where they are more than `most`, else 0."""
        return exceeds(self.fields or encode_entry(self.outgoing.message, self.outgoing.reply_to), most)


class _Shard:
    """What goes to one server: what each command stores, and what is stored in order, by stream."""

    __slots__ = ("runs", "units")

    def __init__(self) -> None:
        self.units: list[list[_Item]] = []
        self.runs: dict[str, list[_Item]] = {}


class Publisher:
    """The publishing half of the adapter."""

    def __init__(self, connection: Connection, topology: TopologyKeeper, trimmer: Trimmer) -> None:
        self._connection = connection
        self._topology = topology
        self._trimmer = trimmer
        self._max_bytes = connection.settings.max_message_bytes

    async def publish(self, messages: Sequence[Outgoing]) -> list[Receipt | PublishError]:
        """See `Adapter.publish`."""
        results: list[Receipt | PublishError] = [_PENDING] * len(messages)
        shards: dict[str, _Shard] = {}
        by_stream: dict[str, _Shard] = {}
        failed = FailedKeys()
        to_trim: dict[TopicSpec, None] = {}
        topic: TopicSpec | None = None
        state: TopicState | None = None
        most = self._max_bytes
        for at, outgoing in enumerate(messages):
            spec = outgoing.topic
            if spec is not topic:
                topic, state = spec, self._topology.known(spec)
            if failed and (behind := failed.behind(outgoing)) is not None:
                results[at] = behind
                continue
            try:
                if state is None or not state.found or (outgoing.mandatory and not _known(state)):
                    state = await self._look_for(outgoing)
                item = _Item(at, outgoing, state)
                # The whole command is longer than its entry.
                if not 0 < len(item.packed) <= most and (size := item.exceeds(most)):
                    raise too_large(f"message {outgoing.message.id} for topic {spec.name!r}", size, most)
                shard = by_stream.get(item.stream)
                if shard is None:
                    shard = shards.setdefault(self._connection.shard(item.stream), _Shard())
                    by_stream[item.stream] = shard
            except MessagingError as error:
                refused = error if isinstance(error, PublishError) else _not_sent(outgoing, error)
                results[at] = refused
                failed.add(outgoing, refused)
                continue
            if spec.ordered:
                shard.runs.setdefault(item.stream, []).append(item)
            else:
                shard.units.append([item])
            if spec.retention is not None or not state.routed:
                to_trim[spec] = None
        for shard in shards.values():
            later = [_chunks(run) for run in shard.runs.values()]
            units = [*shard.units, *(chunks[0] for chunks in later)]
            for start in range(0, len(units), _MOST_COMMANDS):
                await self._exchange(units[start : start + _MOST_COMMANDS], results)
            for chunks in later:
                await self._send_rest(chunks, results)
        for spec in to_trim:
            # Where no group has a member, nobody else bounds what is kept.
            with contextlib.suppress(MessagingError):  # what was published is stored; the next publish trims
                await self._trimmer.trim(spec)
        return results

    async def _look_for(self, outgoing: Outgoing) -> TopicState:
        """The topic, declared or found; with a group where the message must have one. Raises what is amiss."""
        state = self._topology.known(outgoing.topic)
        if state is None:
            await self._topology.declare(Topology(topics=(outgoing.topic,)))
            state = self._topology.known(outgoing.topic)
            assert state is not None  # it was just declared
        if not state.found and not await self._topology.verify_found(state):
            raise TopicNotFound(
                f"message {outgoing.message.id}: topic {outgoing.topic.name!r} does not exist on Redis and "
                f"topology is {state.mode!r}: declare it first"
            )
        if outgoing.mandatory and not _known(state):
            await self._look(state)
            if not state.routed:
                raise NoGroup(
                    f"message {outgoing.message.id} was not published: no group subscribes to topic "
                    f"{outgoing.topic.name}. Run the app that handles it, or declare its group."
                )
        return state

    async def _send_rest(self, chunks: Sequence[list[_Item]], results: list[Receipt | PublishError]) -> None:
        """What comes after the first chunk of one partition, while nothing before it failed (7)."""
        for before, chunk in pairwise(chunks):
            if isinstance(results[before[-1].at], PublishError):
                for item in chunk:
                    results[item.at] = _not_sent(item.outgoing, _earlier_failed())
            else:
                await self._exchange([chunk], results)

    async def _exchange(self, units: Sequence[list[_Item]], results: list[Receipt | PublishError]) -> None:
        stale = _stale(units)
        commands: list[Command] = [_look_command(state) for state in stale]
        commands += [unit[0].packed or _command(unit) for unit in units]
        replies: list[Any]
        try:
            replies = await self._connection.exchange(units[0][0].stream, commands)
        except MessagingError as error:
            replies = [error] * len(commands)
        if stale:
            for state, reply in zip(stale, replies, strict=False):
                _looked(state, reply)
            replies = replies[len(stale) :]
        for unit, reply in zip(units, replies, strict=True):
            if type(reply) is bytes:
                item = unit[0]
                results[item.at] = _receipt(item, reply.decode())
            else:
                _read(unit, reply, results)

    async def _look(self, state: TopicState) -> None:
        (reply,) = await self._connection.exchange(state.keys.streams[0], [_look_command(state)])
        _looked(state, reply)


_PENDING = PublishError("not sent")
"""Stands where a result will be; none may be left, for an error that many raise keeps the frames of all."""


def _known(state: TopicState) -> bool:
    return state.routed and time.monotonic() - state.looked < _GROUPS_KNOWN_FOR


def _stale(units: Sequence[list[_Item]]) -> list[TopicState]:
    """The topics whose group is to be looked for again."""
    stale: dict[str, TopicState] = {}
    state: TopicState | None = None
    for unit in units:
        if unit[0].state is not state:
            state = unit[0].state
            if not _known(state):
                stale[state.keys.root] = state
    return list(stale.values())


def _look_command(state: TopicState) -> list[Argument]:
    if state.spec.native is not None:
        return ["XINFO", "GROUPS", state.spec.native]
    return ["HLEN", state.keys.groups]


def _looked(state: TopicState, reply: Any) -> None:
    if not isinstance(reply, Exception):
        state.routed = bool(reply)
        state.looked = time.monotonic()


def _command(unit: list[_Item]) -> Command:
    if unit[0].outgoing.once is not None:
        return _once_command(unit)
    if len(unit) == 1:
        return ["XADD", unit[0].stream, "*", *unit[0].fields]
    arguments: list[Argument] = []
    for item in unit:
        arguments.append(len(item.fields))
        arguments += item.fields
    return PUBLISH.call([unit[0].stream], arguments)


def _once_command(unit: list[_Item]) -> list[Argument]:
    arguments: list[Argument] = [_KNOWN_FOR]
    for item in unit:
        arguments += [item.outgoing.once or "", len(item.fields), *item.fields]
    once = f"{unit[0].state.keys.once}:{unit[0].partition}"
    return PUBLISH_ONCE.call([unit[0].stream, once, f"{once}:order"], arguments)


def _chunks(run: list[_Item]) -> list[list[_Item]]:
    chunks: list[list[_Item]] = [[]]
    size = 0
    for item in run:
        if chunks[-1] and size + len(item.fields) + 1 > _MOST_ARGUMENTS:
            chunks.append([])
            size = 0
        chunks[-1].append(item)
        size += len(item.fields) + 1
    return chunks


def _read(unit: list[_Item], reply: Any, results: list[Receipt | PublishError]) -> None:
    if isinstance(reply, Exception):
        refused = translate(reply, "XADD")
        for item in unit:
            results[item.at] = _failed(item.outgoing, refused)
        return
    ids = cast("list[bytes]", reply)
    for at, item in enumerate(unit):
        if at >= len(ids):
            results[item.at] = _not_sent(item.outgoing, _earlier_failed())
        elif ids[at].startswith(b"!"):
            results[item.at] = _not_sent(item.outgoing, MessagingError(ids[at][1:].decode()))
        else:
            results[item.at] = _receipt(item, ids[at].decode())


def _receipt(item: _Item, position: str) -> Receipt:
    make = make_receipt if item.state.routed else Unrouted
    partition = item.partition
    return make(item.outgoing.message.id, partition, f"{partition}/{position}")


def _earlier_failed() -> MessagingError:
    return ConnectionFailed("an earlier message of the same partition failed")


def _describe(outgoing: Outgoing, error: BaseException) -> str:
    return f"message {outgoing.message.id} for topic {outgoing.topic.name!r}: {error}"


def _failed(outgoing: Outgoing, error: MessagingError) -> PublishError:
    if isinstance(error, Interrupted):
        return PublishUncertain(_describe(outgoing, error))
    return _not_sent(outgoing, error)


def _not_sent(outgoing: Outgoing, error: BaseException) -> PublishError:
    failure = PublishError(_describe(outgoing, error))
    failure.__cause__ = error
    return failure
