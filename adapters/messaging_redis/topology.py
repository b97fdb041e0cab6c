"""Topics and groups on the broker: created, verified, remembered, listed and deleted.

The record of a topic is a hash; it is written by the first who declares and compared by all others (16). The groups
of a topic are fields of another hash. Adopted streams and consumer groups are looked at, never made.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from messaging.adapter import GroupInfo, GroupSpec
from messaging.errors import ConfigurationError, TopicNotFound
from messaging_redis.connection import translate
from messaging_redis.keys import GroupKeys, TopicKeys
from messaging_redis.positions import stuck
from messaging_redis.scripts import DECLARE_GROUP, DECLARE_TOPIC, DELETE_GROUP, GROUP_STATE, MAKE_GROUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import Start, TopicSpec, Topology, TopologyMode
    from messaging_redis.connection import Connection

logger = logging.getLogger("messaging")

_FORMAT = "1"
_Place: TypeAlias = "tuple[str, str | None, int]"
_NOTED_FOR = 7 * 24 * 3600 * 1000
"""Milliseconds for which a group is known to be deleted: its members ask when they next read."""
_MOST_NOTES = 10_000
_BEFORE = "18446744073709551615"
"""The last sequence number of a millisecond: the id after which a group starts is exclusive."""


@dataclass(slots=True)
class TopicState:
    """What this process knows about one topic."""

    spec: TopicSpec
    keys: TopicKeys
    mode: TopologyMode
    found: bool = False
    """The broker is known to have it."""
    routed: bool = False
    """It had a group when it was last looked at."""
    looked: float = field(default=-1e9)
    """When that was (monotonic seconds)."""


class TopologyKeeper:
    """All topics and groups that this adapter was told of."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._topics: dict[_Place, TopicState] = {}
        self._groups: dict[tuple[_Place, str], GroupSpec] = {}
        self._ours: set[tuple[_Place, str]] = set()
        """Groups that this program may make, and so make anew; others it has only looked at."""

    @property
    def states(self) -> Sequence[TopicState]:
        return list(self._topics.values())

    @property
    def groups(self) -> Sequence[GroupSpec]:
        """Those that were declared here."""
        return list(self._groups.values())

    def keys(self, topic: TopicSpec) -> TopicKeys:
        """The keys of a topic, declared or not."""
        return self._state(topic, "declare").keys

    def group_keys(self, group: GroupSpec) -> GroupKeys:
        return GroupKeys(self.keys(group.topic), group)

    def known(self, topic: TopicSpec) -> TopicState | None:
        """What was declared under this name, if it was."""
        return self._topics.get(_place(topic))

    def _state(self, spec: TopicSpec, mode: TopologyMode) -> TopicState:
        state = self._topics.get(_place(spec))
        if state is None:
            return TopicState(spec, TopicKeys(self._settings, spec), mode)
        return state

    async def declare(self, topology: Topology) -> None:
        """See `Adapter.declare`."""
        topics = {_place(topic): topic for topic in topology.topics}
        for group in topology.groups:
            topics.setdefault(_place(group.topic), group.topic)
        for name, topic in topics.items():
            state = TopicState(topic, TopicKeys(self._settings, topic), topology.mode)
            if topic.native is not None:
                await self._adopt_stream(state)
            elif topology.mode != "off":
                await self._declare_topic(state)
            former = self._topics.get(name)
            if former is not None and former.mode == "declare":
                state.mode = "declare"  # who only looks at it takes back nothing
            self._topics[name] = state
        for group in topology.groups:
            self._groups[_place(group.topic), group.name] = group
            if topology.mode == "declare":
                self._ours.add((_place(group.topic), group.name))
            if group.native is not None:
                await self._adopt_group(group)
            elif topology.mode != "off":
                await self._declare_group(group, topology.mode)

    async def _declare_topic(self, state: TopicState) -> None:
        spec, create = state.spec, state.mode == "declare"
        wanted = {
            "partitions": str(spec.partitions),
            "ordered": str(int(spec.ordered)),
            "format": _FORMAT,
            "generation": str(spec.generation),
        }
        pairs = [part for pair in wanted.items() for part in pair]
        stored = await self._connection.run(DECLARE_TOPIC, [state.keys.record], [int(create), *pairs])
        if stored[0] is None:
            raise TopicNotFound(
                f"topic {spec.name!r} does not exist on Redis ({state.keys.record}), and is not "
                f"created here: run its app, or call bus.declare, where topology is 'declare'"
            )
        _compare_topic(spec, wanted, stored)
        state.found = True

    async def _declare_group(self, group: GroupSpec, mode: TopologyMode) -> None:
        keys = self.group_keys(group)
        stored, lost, _ = await self._make_group(group, keys, create=mode == "declare")
        if stored is None:
            raise TopicNotFound(
                f"group {group.name!r} of topic {group.topic.name!r} does not exist on Redis, and is not "
                f"created here: run its app, or call bus.declare, where topology is 'declare'"
            )
        _compare_group(group, stored)
        if lost:
            _log_loss(group, lost)
        state = self._topics[_place(group.topic)]
        state.routed, state.looked = True, time.monotonic()

    async def _make_group(
        self, group: GroupSpec, keys: GroupKeys, *, create: bool
    ) -> tuple[dict[str, Any] | None, int, bool]:
        """What is stored about it, the streams that had lost it, and whether somebody deleted it."""
        record = json.dumps({"ordered": group.ordered})
        stored, lost, deleted = await self._connection.run(
            DECLARE_GROUP,
            [keys.topic.groups, keys.topic.deleted, keys.retry, *keys.topic.streams],
            [int(create), group.name, record, keys.name, _first_id(group.start)],
        )
        return None if stored is None else _record(stored), int(lost), bool(deleted)

    async def generations(self, topic: TopicSpec) -> list[TopicSpec]:
        """See `Adapter.generations`. The first has its record as it always had; the later ones are listed beside it."""
        first = TopicKeys(self._settings, replace(topic, generation=1))
        record, later = await self._connection.exchange(
            first.record, (("HMGET", first.record, "partitions", "ordered"), ("HGETALL", first.generations))
        )
        for reply in (record, later):
            if isinstance(reply, Exception):
                raise translate(reply, "HGETALL")
        if record[0] is None:
            return []
        found = {1: _shape(*record)}
        found |= {int(number): _shape(*value.split(b":")) for number, value in as_pairs(later)}
        return [
            replace(topic, generation=number, partitions=partitions, ordered=ordered)
            for number, (partitions, ordered) in sorted(found.items())
        ]

    async def begin_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.begin_generation`."""
        key, number = TopicKeys(self._settings, topic).generations, str(topic.generation)
        shape = f"{topic.partitions}:{int(topic.ordered)}"
        await self._connection.call(key, "HSETNX", key, number, shape)
        stored = await self._connection.call(key, "HGET", key, number)
        if stored is None or stored.decode() != shape:
            raise ConfigurationError(
                f"generation {number} of topic {topic.name!r} was begun by somebody else, as {stored!r} and not as "
                f"{shape!r} (partitions:ordered): look at it before you go on"
            )

    async def end_generation(self, topic: TopicSpec) -> None:
        """See `Adapter.end_generation`."""
        key = TopicKeys(self._settings, topic).ended
        await self._connection.call(key, "SET", key, "1")

    async def ended(self, topic: TopicSpec) -> bool:
        """See `Adapter.ended`."""
        key = TopicKeys(self._settings, topic).ended
        return bool(await self._connection.call(key, "EXISTS", key))

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """See `Adapter.finish`."""
        key = self.group_keys(group).finished
        await self._connection.call(key, "SADD", key, str(partition))
        return True

    async def finished(self, group: GroupSpec) -> set[int]:
        """See `Adapter.finished`."""
        key = self.group_keys(group).finished
        return {int(number) for number in await self._connection.call(key, "SMEMBERS", key)}

    async def restore(self, group: GroupSpec) -> None:
        """Make a group anew that its streams have lost, from their beginning, and say so.

        Raises ConfigurationError when the group was deleted on purpose, or is not for this program to make.
        """
        state = self._state(group.topic, "declare")
        keys = GroupKeys(state.keys, group)
        if group.native is not None:
            raise ConfigurationError(
                f"consumer group {group.native!r} of topic {group.topic.name!r} is gone from Redis; it was adopted, "
                f"so it is not made anew: create it, then start again"
            )
        stored, lost, deleted = await self._make_group(group, keys, create=False)
        if stored is None:
            # Of an adopted topic there is no record that would tell a loss from a deletion.
            if deleted or group.topic.native is not None:
                raise ConfigurationError(
                    f"group {group.name!r} of topic {group.topic.name!r} was deleted from Redis: "
                    f"declare it again, or stop its members"
                )
            if (_place(group.topic), group.name) not in self._ours:
                raise ConfigurationError(
                    f"group {group.name!r} of topic {group.topic.name!r} is gone from Redis, and is not made anew "
                    f"here: declare it again where topology is 'declare', then start again"
                )
            await self._declare_topic(state)
            # Everything that is in the streams by now came after the loss.
            earliest = type(group)(group.topic, group.name, group.ordered, "earliest", None)
            await self._make_group(earliest, keys, create=True)
            lost = keys.topic.partitions
        if lost:
            _log_loss(group, lost)

    async def ensure_retry_stream(self, keys: GroupKeys) -> None:
        """The retry stream of an adopted group, which is ours and not the group's."""
        await self._connection.run(MAKE_GROUP, [keys.retry], [keys.name])

    async def _has_record(self, state: TopicState) -> bool:
        return (
            await self._connection.call(state.keys.record, "HGET", state.keys.record, "partitions")
            is not None
        )

    async def verify_found(self, state: TopicState) -> bool:
        """Whether the broker has the topic: asked once where nothing was declared."""
        if not state.found:
            state.found = state.mode == "declare" or await self._has_record(state)
        return state.found

    async def _adopt_stream(self, state: TopicState) -> None:
        spec = state.spec
        if spec.ordered and spec.partitions != 1:
            raise ConfigurationError(
                f"topic {spec.name!r} adopts the stream {spec.native!r}, which is one partition: "
                f"say partitions=1 to keep order on it"
            )
        await self._stream_groups(state)
        state.found = True

    async def _adopt_group(self, group: GroupSpec) -> None:
        state = self._topics[_place(group.topic)]
        if group.native not in await self._stream_groups(state):
            raise TopicNotFound(
                f"stream {state.keys.streams[0]!r} has no consumer group {group.native!r} to adopt: create it first"
            )
        state.routed, state.looked = True, time.monotonic()

    async def _stream_groups(self, state: TopicState) -> list[str]:
        stream = state.keys.streams[0]
        (reply,) = await self._connection.exchange(stream, (("XINFO", "GROUPS", stream),))
        if isinstance(reply, Exception):
            if "no such key" in str(reply):
                raise TopicNotFound(f"there is no stream {stream!r} on Redis to adopt: create it first")
            raise translate(reply, "XINFO GROUPS")
        return [str(as_dict(item)["name"], "utf-8", "replace") for item in reply]

    async def infos(self) -> list[GroupInfo]:
        """The groups of the declared topics, as the broker knows them."""
        found: list[GroupInfo] = []
        for state in self.states:
            groups = [
                group
                for group in self._groups.values()
                if _place(group.topic) == _place(state.spec) and group.native is not None
            ]
            if state.spec.native is None:
                stored = await self._connection.call(state.keys.groups, "HGETALL", state.keys.groups)
                groups += [
                    GroupSpec(state.spec, name.decode(), bool(_record(record).get("ordered")))
                    for name, record in sorted(as_pairs(stored))
                ]
            found += [await self._info(state, group) for group in groups]
        return found

    async def _info(self, state: TopicState, group: GroupSpec) -> GroupInfo:
        keys = GroupKeys(state.keys, group)
        copies = [keys.retry]
        if group.ordered:
            copies = [keys.redrive(partition) for partition in range(keys.topic.partitions)]
        lag, _, oldest, members, dead, now, strayed = await self._connection.run(
            GROUP_STATE,
            [keys.members, keys.dead, keys.delayed, *copies, *state.keys.streams],
            [keys.name, len(copies)],
        )
        return GroupInfo(
            topic=state.spec.name,
            group=group.name,
            lag=None if lag < 0 else lag,
            members=members,
            dead_letters=dead,
            oldest=None if oldest < 0 else max(0.0, (now - oldest) / 1000),
            generation=state.spec.generation,
            ordered=group.ordered,
            stuck=stuck(group, keys.name, strayed, self._settings.address),
        )

    async def check(self, group: GroupSpec) -> None:
        """Raises TopicNotFound or ConfigurationError where the broker has no such topic or group, or of another shape.

        Asked of the broker each time: what a program declared long ago may be gone.
        """
        state = self._state(group.topic, "off")
        if group.topic.native is not None or group.native is not None:
            there = await self._stream_groups(state)
            if group.native is not None:
                if group.native not in there:
                    raise _no_group(group)
                return
        command = ("HMGET", state.keys.record, "partitions", "ordered")
        shape, record = await self._connection.exchange(
            state.keys.record, (command, ("HGET", state.keys.groups, group.name))
        )
        for reply in (shape, record):
            if isinstance(reply, Exception):
                raise translate(reply, "reading the record of a topic")
        if group.topic.native is None:
            if shape[0] is None:
                raise TopicNotFound(
                    f"topic {group.topic.name!r} does not exist on Redis ({state.keys.record}): declare it first"
                )
            wanted = {"partitions": str(group.topic.partitions), "ordered": str(int(group.topic.ordered))}
            _compare_topic(group.topic, wanted, shape)
        if record is None:
            raise _no_group(group)
        _compare_group(group, _record(record))

    async def _recorded(self, topic: TopicSpec) -> TopicSpec | None:
        """The topic as the broker knows it: its partitions decide which keys there are."""
        if topic.native is not None:
            return topic
        record = self._state(topic, "off").keys.record
        partitions = await self._connection.call(record, "HGET", record, "partitions")
        return None if partitions is None else replace(topic, partitions=int(partitions))

    async def delete(self, group: GroupSpec) -> TopicSpec | None:
        """See `Adapter.delete_group`. The streams of an adopted topic keep what other programs made.

        Returns the topic, where there is one.
        """
        topic = await self._recorded(group.topic)
        keys = GroupKeys(TopicKeys(self._settings, topic or group.topic), group)
        streams = [] if group.native is not None else keys.topic.streams
        await self._connection.run(
            DELETE_GROUP,
            [keys.topic.groups, keys.topic.record, keys.topic.deleted, *streams, *keys.own],
            [group.name, keys.name, len(streams), _NOTED_FOR, _MOST_NOTES],
        )
        self._groups.pop((_place(group.topic), group.name), None)
        self._ours.discard((_place(group.topic), group.name))
        if (state := self.known(group.topic)) is not None:
            state.routed = False
        return topic


def _place(topic: TopicSpec) -> _Place:
    """What tells one topic, and one generation of it, from all others."""
    return topic.name, topic.native, topic.generation


def _shape(partitions: bytes, ordered: bytes) -> tuple[int, bool]:
    return int(partitions), ordered == b"1"


def _record(stored: bytes) -> dict[str, Any]:
    """What was stored about a group; nothing, where another program wrote something else there."""
    try:
        record: Any = json.loads(stored)
    except ValueError:
        return {}
    return cast("dict[str, Any]", record) if isinstance(record, dict) else {}


def as_pairs(reply: Any) -> list[tuple[Any, Any]]:
    """Names and values: of a map, or of a flat list from an older protocol."""
    if hasattr(reply, "items"):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=False))


def as_dict(reply: Any) -> dict[str, Any]:
    """The same, with the names as text."""
    return {
        str(name, "utf-8") if isinstance(name, bytes) else str(name): value for name, value in as_pairs(reply)
    }


def _first_id(start: Start) -> str:
    if isinstance(start, datetime):
        milliseconds = int(start.timestamp() * 1000)
        return "0" if milliseconds <= 0 else f"{milliseconds - 1}-{_BEFORE}"
    return "$" if start == "latest" else "0"


def _compare_topic(spec: TopicSpec, wanted: dict[str, str], stored: Sequence[bytes | None]) -> None:
    for (name, ours), theirs in zip(wanted.items(), stored, strict=True):
        if theirs is not None and theirs.decode() != ours:
            raise ConfigurationError(
                f"topic {spec.name!r} has {name} {_shown(name, theirs.decode())} on Redis, but the program says "
                f"{_shown(name, ours)}: correct the program, or change it by "
                f"`messaging generations begin`"
            )


def _no_group(group: GroupSpec) -> ConfigurationError:
    name = group.name if group.native is None else group.native
    return ConfigurationError(
        f"topic {group.topic.name!r} has no group {name!r} on Redis: declare it, or correct the name"
    )


def _compare_group(group: GroupSpec, stored: dict[str, Any]) -> None:
    theirs = stored.get("ordered", group.ordered)
    if bool(theirs) != group.ordered:
        raise ConfigurationError(
            f"group {group.name!r} of topic {group.topic.name!r} is ordered={bool(theirs)} on Redis, but the program "
            f"says ordered={group.ordered}: correct the program, or use another group"
        )


def _shown(name: str, value: str) -> str:
    return {"0": "False", "1": "True"}.get(value, value) if name == "ordered" else value


def _log_loss(group: GroupSpec, streams: int) -> None:
    logger.error(
        "Redis has lost group %s of topic %s on %d streams; it begins anew with what came since. "
        "Messages that were there before are lost to it.",
        group.name,
        group.topic.name,
        streams,
        extra={"topic": group.topic.name, "group": group.name, "streams": streams},
    )
