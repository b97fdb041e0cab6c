"""What is asked of the brokers beside messages: topics, offsets, committed positions, groups."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from messaging.errors import ConfigurationError, ConnectionFailed
from messaging_kafka import library
from messaging_kafka.broker_time import BrokerTime
from messaging_kafka.connection import check
from messaging_kafka.library import Errors, KafkaError, Place
from messaging_kafka.topic_ids import LookAt, TopicIds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from messaging_kafka.connection import Link

Answer = TypeVar("Answer")

GONE_WITHIN = 5.0
"""Seconds for which a broker may go on naming a topic that was deleted."""
PORTION = 100
"""Partitions that are created by one request, unless one topic has more."""
LEADERS_CHANNEL = "leaders"
"""A connection of its own: a broker that hangs as it begins to lead has it closed, and nothing else."""
LEADER_ANSWERS = 1.0
"""Seconds for a broker that is named as a new leader to say so itself."""
LOOK_AGAIN = 0.02
"""Seconds between two looks at a topic that was just created, or that has no leader: the broker sends no event."""
_COORDINATOR_MOVES = (
    Errors.GroupLoadInProgressError,
    Errors.GroupCoordinatorNotAvailableError,
    Errors.NotCoordinatorForGroupError,
)
SAFE_COPIES = 3
"""With these, one may be lost, and another be away, without the loss of a message."""
FETCH = 1
_TOO_OLD = "before 3.7"
RELEASES = (
    ((4, 18), "4.1 or later"),
    ((4, 0), "4.0"),
    ((0, 17), "3.9"),
    ((0, 16), "3.7 or 3.8"),
    ((0, 1), _TOO_OLD),
)
"""By the least and the latest version of the fetch request that a release knows."""
GONE = (Errors.UnknownTopicOrPartitionError, Errors.InvalidTopicError)
_MOVING = (Errors.NotLeaderForPartitionError, Errors.LeaderNotAvailableError, Errors.StaleMetadata)
_PASSING = (*_MOVING, Errors.UnknownTopicOrPartitionError)


def release(fetch: tuple[int, int], address: str) -> str:
    """Which release of Kafka it is, as far as its versions of the fetch request tell; empty where they do not.

    Raises ConfigurationError for one that is too old.
    """
    name = next((name for least, name in RELEASES if fetch >= least), "")
    if name == _TOO_OLD:
        raise ConfigurationError(f"Kafka at {address} is version {name}; 3.7 or newer is needed")
    return name


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to create."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict[str, str])


STORED_AS_SENT = {"compression.type": "producer"}
"""A codec of the cluster's choice is one that this client may not have, and other sizes than those that we counted."""
KEPT_BY_AGE = {**STORED_AS_SENT, "cleanup.policy": "delete", "retention.bytes": "-1"}
"""Nothing goes but by age, whatever the cluster's defaults are. Beside `retention.ms`."""
BY_BROKER = {"message.timestamp.type": "LogAppendTime"}
"""Retention, delays and claims go by the broker's clock: by the writer's, what one writes whose clock is wrong goes
at once, or waits for hours, or is refused.
"""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for a partition."""

    offset: int
    metadata: str = ""


class Brokers:
    """Questions and orders to the cluster. Raises our errors."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._leaders: dict[Place, int] = {}
        self.topic_ids = TopicIds()
        self.time = BrokerTime()

    @property
    def link(self) -> Link:
        return self._link

    # --- topics ------------------------------------------------------------------------------------------------

    async def partitions(self, names: Iterable[str]) -> dict[str, int]:
        """How many partitions each of these topics has; absent ones are left out, never created."""
        wanted = list(names)
        with self._link.translated(f"looking for topics {', '.join(wanted)}"):
            found = await self._look(wanted)
        return {name: len(leaders) for name, leaders in found.items()}

    async def _look(self, names: Sequence[str]) -> dict[str, dict[int, int]]:
        response = await self._link.send(LookAt(list(names)))
        found: dict[str, dict[int, int]] = {}
        for code, name, topic_id, _, partitions, *_ in response.topics:
            error = library.failure_of(code)
            if isinstance(error, GONE):
                continue
            if error is not None and not isinstance(error, Errors.LeaderNotAvailableError):
                raise error
            self.topic_ids.told(name, topic_id)
            found[name] = {number: leader for _, number, leader, *_ in partitions}
            for number, leader in found[name].items():
                self._leaders[Place(name, number)] = leader
        return found

    async def replication(self, name: str) -> int:
        """How many copies this new topic has: as the settings say, else three, or as many as there are brokers.

        One that is down counts: a topic has its copies for ever, and is not to have fewer for when it was made.
        """
        if self._link.settings.replication is not None:
            return self._link.settings.replication
        with self._link.translated("counting the brokers"):
            response = await self._link.send(library.Metadata([], False))
            living = len(response.brokers)
            for copies in range(SAFE_COPIES, living, -1):
                if await self._can_have(name, copies):
                    return copies
        return max(1, min(SAFE_COPIES, living))

    async def _can_have(self, name: str, copies: int) -> bool:
        """Whether there are so many brokers: the controller alone knows of those that are down."""
        wait = int(self._link.settings.operation_timeout * 1000)
        response = await self._link.send(library.CreateTopics([(name, 1, copies, [], [])], wait, True))
        return all(code == 0 for _, code, _ in response.topic_errors)

    async def reach(self) -> None:
        """See that a broker answers."""
        with self._link.translated("asking whether a broker answers"):
            await self._link.send(library.Metadata([], False))

    async def version(self) -> str:
        """See `release`."""
        with self._link.translated("asking for the version"):
            response = await self._link.send(library.ApiVersions())
            check(response.error_code)
        fetch = {key: (least, most) for key, least, most, *_ in response.api_versions}.get(FETCH, (0, 0))
        return release(fetch, self._link.settings.address)

    async def create(self, topics: Sequence[NewTopic], copies: int | None = None) -> set[str]:
        """Create these and wait until they can be used; the names of those that were not there before.

        So many in one request as a slow broker makes within `operation_timeout`. Raises what names those that failed.
        """
        if not topics:
            return set()
        if copies is None:
            copies = await self.replication(topics[0].name)
        created: set[str] = set()
        for some in _portions(topics):
            names = [one.name for one in some]
            with self._link.translated(f"creating topics {', '.join(names)}"):
                created |= await self._create(some, copies)
                places = await self._until_led(names)
                # A broker may be named as the leader of what it does not know yet.
                await self._found(dict.fromkeys(places, library.LATEST), _PASSING)
        return created

    async def _create(self, topics: Sequence[NewTopic], copies: int) -> set[str]:
        wait = self._link.settings.operation_timeout
        until = time.monotonic() + wait
        anywhere: list[Any] = []
        described = [(one.name, one.partitions, copies, anywhere, list(one.config.items())) for one in topics]
        created: set[str] = set()
        while described:
            response = await self._link.send(library.CreateTopics(described, int(wait * 1000), False))
            again: set[str] = set()
            for name, code, message in response.topic_errors:
                error = library.failure_of(code)
                if error is None:
                    created.add(name)
                elif isinstance(error, Errors.InvalidReplicationFactorError) and time.monotonic() < until:
                    again.add(name)  # a broker that just started, or was slow, is not counted for a moment
                elif not isinstance(error, Errors.TopicAlreadyExistsError):
                    with self._link.translated(f"creating topic {name}"):
                        raise type(error)(message or error)
            described = [one for one in described if one[0] in again]
            if described:
                await asyncio.sleep(LOOK_AGAIN * 5)
        return created

    async def _until_led(self, names: Sequence[str], least: int = 1) -> list[Place]:
        """All partitions of these, when each has so many at least, and all have a leader."""
        unled = list(names)
        try:
            async with asyncio.timeout(self._link.settings.operation_timeout):
                while True:
                    found = await self._look(names)
                    unled = [name for name in names if not _led(found.get(name, {}), least)]
                    if not unled:
                        return [Place(name, number) for name, leaders in found.items() for number in leaders]
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            raise ConnectionFailed(
                f"topics {', '.join(unled)} were created, but have no leaders within "
                f"{self._link.settings.operation_timeout:g} s"
            ) from None

    async def grow(self, name: str, partitions: int) -> None:
        """Give a topic so many partitions and wait until they can be used; that it has them already is no error."""
        wait = int(self._link.settings.operation_timeout * 1000)
        with self._link.translated(f"adding partitions to topic {name}"):
            response = await self._link.send(
                library.CreatePartitions([(name, (partitions, None))], wait, False)
            )
            for topic, code, message in response.topic_errors:
                error = library.failure_of(code)
                if error is not None and not isinstance(error, Errors.InvalidPartitionsError):
                    raise type(error)(f"{topic}: {message or error}")
            places = await self._until_led([name], partitions)
            await self._found(dict.fromkeys(places, library.LATEST), _PASSING)

    async def delete(self, names: Sequence[str]) -> None:
        """Delete these topics; absent is no error."""
        if not names:
            return
        wait = int(self._link.settings.operation_timeout * 1000)
        with self._link.translated(f"deleting topics {', '.join(names)}"):
            response = await self._link.send(library.DeleteTopics(list(names), wait))
            for name, code in response.topic_error_codes:
                error = library.failure_of(code)
                if error is not None and not isinstance(error, GONE):
                    raise type(error)(f"{name}: {error}")
            await self._until_gone(names)

    async def _until_gone(self, names: Sequence[str]) -> None:
        """A broker knows a little later than the controller: who makes the topic again would find the former one."""
        until = time.monotonic() + GONE_WITHIN  # somebody else may have made it again meanwhile
        while await self._look(names) and time.monotonic() < until:  # noqa: ASYNC110  the broker sends no event
            await asyncio.sleep(LOOK_AGAIN)
        gone = set(names)
        for place in [place for place in self._leaders if place.topic in gone]:
            del self._leaders[place]

    # --- leaders -----------------------------------------------------------------------------------------------

    def leader(self, place: Place) -> int | None:
        """The broker that leads a partition, as far as it is known."""
        leader = self._leaders.get(place, -1)
        return leader if leader >= 0 else None

    def knows(self, place: Place) -> bool:
        """Whether the partition was there when it was last looked for, led or not."""
        return place in self._leaders

    async def leaders(self, topics: Iterable[str]) -> dict[Place, int]:
        """Who leads the partitions of these topics now; -1 where nobody does. Raises aiokafka's errors."""
        found = await self._look(list(topics))
        return {Place(name, number): leader for name, led in found.items() for number, leader in led.items()}

    def forget_leader(self, place: Place) -> None:
        """The partition has another leader now."""
        self._leaders.pop(place, None)

    async def find_leaders(self, places: Iterable[Place]) -> None:
        """Look for the leaders that are not known. Raises aiokafka's errors."""
        unknown = sorted({place.topic for place in places if self.leader(place) is None})
        if unknown:
            await self._look(unknown)

    async def ask_leaders(self, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
        """Who leads these by its own word, and in which epoch; of the others the leader is not known then.

        Other brokers name a new leader a little before it knows.
        """
        named: dict[int, set[Place]] = defaultdict(set)
        for place in places:
            if (node := self.leader(place)) is not None:
                named[node].add(place)
        leading: dict[Place, tuple[int, int]] = {}
        for node, led in named.items():
            question = LookAt(sorted({place.topic for place in led}))
            with suppress(KafkaError):
                response = await self._link.send(
                    question, node=node, channel=LEADERS_CHANNEL, within=LEADER_ANSWERS
                )
                leading |= {
                    Place(topic, number): (node, epoch)
                    for _, topic, _, _, partitions, *_ in response.topics
                    for _, number, leader, epoch, *_ in partitions
                    if leader == node
                }
            for place in led - leading.keys():
                self._leaders[place] = -1
        return leading

    # --- offsets -----------------------------------------------------------------------------------------------

    async def offsets(self, at: Mapping[Place, int], *, committed: bool = False) -> dict[Place, int]:
        """The first offset at or after each time (milliseconds, or EARLIEST, LATEST); ABSENT where there is none.

        `committed`: before all that is in a transaction that is open, for that is published when it ends.
        """
        topics = ", ".join(sorted({place.topic for place in at}))
        with self._link.translated(f"looking for offsets of {topics}"):
            return await self._found(at, _MOVING, committed=committed)

    async def _found(
        self, at: Mapping[Place, int], passing: tuple[type[Exception], ...], *, committed: bool = False
    ) -> dict[Place, int]:
        """See `offsets`; asked again for a while after what passes."""
        until = time.monotonic() + self._link.settings.operation_timeout
        while True:
            try:
                return await self._offsets(at, committed=committed)
            except passing:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(LOOK_AGAIN)
                await self._look(sorted({place.topic for place in at}))

    async def _offsets(self, at: Mapping[Place, int], *, committed: bool) -> dict[Place, int]:
        unknown = sorted({place.topic for place in at if self._leaders.get(place, -1) < 0})
        if unknown:
            await self._look(unknown)
        by_node: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for place, moment in at.items():
            leader = self._leaders.get(place)
            if leader is None:
                raise Errors.UnknownTopicOrPartitionError(f"{place.topic} {place.partition}")
            if leader < 0:
                raise Errors.LeaderNotAvailableError(f"{place.topic} {place.partition}")
            by_node[leader][place.topic].append((place.partition, moment))
        found: dict[Place, int] = {}
        for node, topics in by_node.items():
            response = await self._link.send(
                library.ListOffsets(-1, int(committed), list(topics.items())), node=node
            )
            for topic, partitions in response.topics:
                for number, code, _, offset in partitions:
                    if code:
                        self._leaders.pop(Place(topic, number), None)
                    check(code)
                    found[Place(topic, number)] = offset
        return found

    async def delete_records(self, before: Mapping[Place, int]) -> None:
        """Delete what lies before these offsets."""
        names = sorted({place.topic for place in before})
        with self._link.translated(f"trimming {', '.join(names)}"):
            await self._look(names)
            for place, offset in before.items():
                request = library.DeleteRecords(
                    [(place.topic, [(place.partition, offset)])],
                    int(self._link.settings.operation_timeout * 1000),
                )
                response = await self._link.send(request, node=self._leaders.get(place))
                for topic in response.topics:
                    for _, _, code, *_ in topic[1]:
                        check(code)

    # --- groups ------------------------------------------------------------------------------------------------

    async def committed(self, group: str, places: Sequence[Place] | None = None) -> dict[Place, Committed]:
        """What the group has committed; partitions without are left out."""
        asked = None if places is None else list(_by_topic(places).items())
        with self._link.translated(f"reading the position of group {group}"):
            return await self._when_loaded(group, partial(self._committed, group, asked))

    async def _committed(self, group: str, asked: Any) -> dict[Place, Committed]:
        request = library.OffsetFetch(group, asked)
        response = await self._link.to_coordinator(group, request, channel=library.COMMIT_CHANNEL)
        check(getattr(response, "error_code", 0))
        found: dict[Place, Committed] = {}
        for topic, partitions in response.topics:
            for number, offset, metadata, code in partitions:
                check(code)
                if offset != library.ABSENT:
                    found[Place(topic, number)] = Committed(offset, metadata or "")
        return found

    async def _when_loaded(self, group: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask the coordinator, again while another broker becomes it."""
        until = time.monotonic() + self._link.settings.operation_timeout
        while True:
            try:
                return await ask()
            except _COORDINATOR_MOVES as error:
                self._link.forget_coordinator(group, error)
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(LOOK_AGAIN)

    async def begin(self, group: str, positions: Mapping[Place, Committed]) -> None:
        """Commit for a group that has no members. Raises aiokafka's errors."""
        await self._when_loaded(group, partial(self.commit, group, positions))

    async def commit(
        self,
        group: str,
        positions: Mapping[Place, Committed],
        *,
        generation: int = -1,
        member: str = "",
        within: float | None = None,
    ) -> None:
        """Commit once, for a member, or, without one, for a group that has none. Raises aiokafka's errors."""
        topics: dict[str, list[Any]] = defaultdict(list)
        for place, position in positions.items():
            topics[place.topic].append((place.partition, position.offset, position.metadata))
        request = library.OffsetCommit(group, generation, member, -1, list(topics.items()))
        response = await self._link.to_coordinator(
            group, request, channel=library.COMMIT_CHANNEL, within=within
        )
        for _, partitions in response.topics:
            for _, code in partitions:
                error = library.failure_of(code)
                self._link.forget_coordinator(group, error or ())
                check(code)

    async def members(self, groups: Sequence[str]) -> dict[str, list[str]]:
        """The ids of the members of each group."""
        found: dict[str, list[str]] = {}
        for group in groups:
            with self._link.translated(f"looking at group {group}"):
                await self._when_loaded(group, partial(self._members, group, found))
        return found

    async def _members(self, group: str, found: dict[str, list[str]]) -> None:
        response = await self._link.to_coordinator(group, library.DescribeGroups([group], False))
        for code, name, _, _, _, members, *_ in response.groups:
            if not isinstance(library.failure_of(code), Errors.GroupIdNotFound):
                check(code)
                found[name] = [member[0] for member in members]

    async def delete_group(self, group: str) -> None:
        """Delete a consumer group with its positions, its members put out first; absent is no error.

        A member that does not know yet that its group is gone may join again in between: it is put out, too.
        """
        until = time.monotonic() + self._link.settings.operation_timeout
        while True:
            for member in (await self.members([group])).get(group, ()):
                with self._link.translated(f"putting a member out of group {group}"):
                    await self._link.to_coordinator(group, library.LeaveGroup(group, member))
            with self._link.translated(f"deleting group {group}"):
                try:
                    return await self._when_loaded(group, partial(self._delete_group, group))
                except Errors.NonEmptyGroup:
                    if time.monotonic() >= until:
                        raise
            await asyncio.sleep(LOOK_AGAIN)

    async def _delete_group(self, group: str) -> None:
        response = await self._link.to_coordinator(group, library.DeleteGroups([group]))
        for _, code in response.results:
            if not isinstance(library.failure_of(code), Errors.GroupIdNotFound):
                check(code)


def _portions(topics: Sequence[NewTopic]) -> Iterator[list[NewTopic]]:
    portion: list[NewTopic] = []
    for one in topics:
        if portion and sum(other.partitions for other in portion) + one.partitions > PORTION:
            yield portion
            portion = []
        portion.append(one)
    yield portion


def _led(leaders: Mapping[int, int], least: int) -> bool:
    return len(leaders) >= least and min(leaders.values()) >= 0


def _by_topic(places: Iterable[Place]) -> dict[str, list[int]]:
    topics: dict[str, list[int]] = defaultdict(list)
    for place in places:
        topics[place.topic].append(place.partition)
    return topics
