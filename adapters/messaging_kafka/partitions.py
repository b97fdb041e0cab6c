"""What a member owns: units of partitions, their progress, and how they come and go.

A unit is taken by reading what was committed and committing at once that it has an owner, so that a member that dies is
told from one that leaves (3). It is given up when its handlers have ended: a last commit, then the group deals it anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING

from messaging.errors import ConnectionFailed, LeaseLost, MessagingError
from messaging_kafka import progress, tiers
from messaging_kafka.brokers import Committed
from messaging_kafka.library import Errors, Place
from messaging_kafka.membership import Membership
from messaging_kafka.source import Source
from messaging_kafka.topology import differs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from messaging.adapter import GroupSpec, Lease, Ownership, RawDelivery
    from messaging.background import Background
    from messaging_kafka.assignor import Share
    from messaging_kafka.progress import Progress
    from messaging_kafka.session import Session

logger = logging.getLogger("messaging")

COMMIT_AGAIN = 0.2
"""Seconds between attempts at the last commit of a unit."""
UNREACHED_FOR = 2.0
"""Seconds for which the last commit of a member that leaves is tried where no broker answers."""
_UNANSWERED = (Errors.KafkaConnectionError, Errors.NodeNotReadyError, Errors.NoBrokersAvailable, OSError)
FIRST_TIER = 100_000
"""The number of the unit of the first tier: above those of partitions, however many are added."""
LEAST_ROOM = 200
"""Characters: with less for what is unfinished, the position is committed alone."""


@dataclass(slots=True, eq=False)
class Part:
    """One Kafka partition of a unit, while it is owned."""

    place: Place
    source: Source
    progress: Progress
    copies: bool
    """Its records are copies that we wrote."""
    tier: float | None
    """How long its records wait, in seconds, where it is a tier of the ladder."""


@dataclass(slots=True, eq=False)
class Unit:
    """What has one owner at a time."""

    number: int
    """The partition of its deliveries."""
    parts: list[Part]
    fence: int
    lease: Lease
    draining: bool = False
    dirty: set[Part] = field(default_factory=set[Part])
    """Whose progress is not committed yet."""

    @property
    def broken(self) -> bool:
        """A log of it ends before what was done."""
        return any(part.source.broken is not None for part in self.parts)

    @property
    def waiting(self) -> bool:
        """Whether there may be something to read of it here."""
        return any(part.source.waiting for part in self.parts)

    @property
    def full(self) -> bool:
        """What is unfinished of it fills the room beside its position."""
        return any(part.progress.full for part in self.parts)

    def anew(self) -> Unit:
        """The same unit, broken logs from their beginning, the others from where they are."""
        parts: list[Part] = []
        for part in self.parts:
            first = part.source.broken
            position = part.progress.committed(leaving=True) if first is None else Committed(first)
            known = progress.resume(position)
            source = Source(part.place, position.offset, known.undone)
            parts.append(Part(part.place, source, known, part.copies, part.tier))
        return Unit(self.number, parts, self.fence, self.lease, dirty=set(parts))

    def oldest(self) -> float:
        """When the first of its deliveries that are not settled was handed out; infinite where there is none."""
        times = [
            entry.delivery.token.handed
            for part in self.parts
            for entry in part.progress.unfinished.values()
            if entry.delivery is not None
        ]
        return min(times, default=inf)


class Partitions:
    """The units of one member. `woken()` is called when there is something new to look at."""

    def __init__(
        self,
        session: Session,
        group: GroupSpec,
        ownership: Ownership,
        background: Background,
        *,
        topic: str,
        count: int,
        sources: Callable[[Iterable[Source]], None],
        gone: Callable[[Unit], None],
        woken: Callable[[], None],
    ) -> None:
        self._session = session
        self._group = group
        self._ownership = ownership
        self._background = background
        self._topic = topic
        self._count = count
        self._sources = sources
        self._gone = gone
        self._woken = woken
        names = session.names
        self._beside = names.redrive(group) if group.ordered else names.retry(group)
        self.where = f"{group.topic.name}/{group.name}"
        self.owned: dict[int, Unit] = {}
        self.relief = False
        """Whether another member has room for what is too much for this one."""
        self.shared = 0
        """How many partitions of the group are for retries that are due."""
        self.room = progress.METADATA_LIMIT
        """Characters that the broker keeps with a position."""
        self._committing = asyncio.Lock()
        self._sharing = asyncio.Lock()
        self._leaving = False
        self.membership = Membership(
            session.brokers,
            names.group(group),
            [topic, self._beside],
            self._kinds,
            self.places,
            where=self.where,
            changed=self._share,
            lost=self._lost,
            claim=self._claim,
        )

    def places(self, unit: int) -> list[Place]:
        """The partitions of a unit."""
        if self._group.ordered:
            return [Place(self._topic, unit), Place(self._beside, unit)]
        if unit < FIRST_TIER:
            return [Place(self._topic, unit)]
        return [Place(self._beside, unit - FIRST_TIER)]

    async def _kinds(self) -> Sequence[range]:
        with suppress(MessagingError):  # whoever looks for it tells
            await self.grown()
        units = range(self._count)
        if self._group.ordered:
            return [units]
        beside = (await self._session.brokers.partitions([self._beside])).get(self._beside, tiers.TIERS)
        behind = FIRST_TIER + tiers.TIERS
        return [units, range(FIRST_TIER, behind), range(behind, FIRST_TIER + beside)]

    async def grown(self) -> bool:
        """Whether the owner of an adopted topic has added partitions, which are dealt out from now on.

        Raises ConnectionFailed, and ConfigurationError where what is beside the topic cannot grow with it, and where
        the topic is ours: its count is for programs to ask for.
        """
        count = (await self._session.brokers.partitions([self._topic])).get(self._topic, 0)
        if count <= self._count:
            return False
        if self._group.topic.native is None:
            raise differs(replace(self._group.topic, partitions=self._count), count)
        await self._session.topology.fit(self._group, count)
        logger.warning(
            "Topic %s of %s has %d partitions, it had %d: they are read from their beginning. Keys that moved may be "
            "handled out of order",
            self._topic,
            self.where,
            count,
            self._count,
            extra={"topic": self._group.topic.name, "group": self._group.name, "partitions": count},
        )
        self._count = count
        return True

    def owner(self, delivery: RawDelivery) -> Unit | None:
        """The unit that the delivery came from, while it is owned without a break."""
        unit: Unit = delivery.token.unit
        return unit if self.owned.get(unit.number) is unit else None

    @property
    def owns_first_tier(self) -> bool:
        """Whether what is sent on without a delay would come back to this member."""
        return FIRST_TIER in self.owned

    @property
    def shares(self) -> bool:
        """Whether another member has partitions for retries that are due."""
        return self.shared > sum(number >= FIRST_TIER + tiers.TIERS for number in self.owned)

    def _claim(self) -> tuple[int, ...]:
        """What is owned; first that of which something has been in this process for longest: it may be long to end."""
        return tuple(sorted(self.owned, key=lambda number: self.owned[number].oldest()))

    # --- come --------------------------------------------------------------------------------------------------

    async def _share(self, share: Share) -> None:
        async with self._sharing:
            await self._change(share)
        self._woken()

    async def _change(self, share: Share) -> None:
        self.relief, self.shared = share.relief, share.shared
        missing = self.owned.keys() - share.units
        if missing:
            self._drop([self.owned[number] for number in missing], "the group gave it to another member")
        if self._leaving:
            return
        gained = sorted(share.units - self.owned.keys())
        if gained:
            await self._take(gained)
        going = [unit for number in sorted(share.give_up) if (unit := self.owned.get(number)) is not None]
        going = [unit for unit in going if not unit.draining]
        if going:
            for unit in going:
                unit.draining = True
            self._background.start(self._give_up(going), name="messaging-kafka-give-up")

    async def _take(self, numbers: Collection[int]) -> None:
        brokers = self._session.brokers
        all_places = [place for number in numbers for place in self.places(number)]
        committed = await brokers.committed(self._session.names.group(self._group), all_places)
        unknown = [
            place.partition for place in all_places if place.topic == self._topic and place not in committed
        ]
        begins = await self._session.topology.begins(self._group, unknown) if unknown else {}
        units: list[Unit] = []
        for number in numbers:
            parts: list[Part] = []
            for place in self.places(number):
                copies = place.topic == self._beside
                position = committed.get(place)
                if position is None:
                    position = Committed(0 if copies else begins[place.partition])
                tier = tiers.delay_of(place.partition) if copies and not self._group.ordered else None
                known = progress.resume(position, brokers.time.moment())
                parts.append(Part(place, Source(place, position.offset, known.undone), known, copies, tier))
            unit = Unit(number, parts, self.membership.generation, self.membership.lease)
            unit.dirty.update(parts)
            units.append(unit)
        _explain([part.progress for unit in units for part in unit.parts])
        await self._commit(units)
        for unit in units:
            self.owned[unit.number] = unit
        self._sources(part.source for unit in units for part in unit.parts)

    def forsake(self, reason: str) -> None:
        """Give everything up without a commit: the positions are those of a log that is gone."""
        self._lost(reason)

    async def begin_anew(self) -> None:
        """Units of which a log ends before what was done of it: they begin at the first record that is kept.

        The offsets of another log are those of other messages: what is held of the old one is lost, and what was
        committed is replaced before anything is read. Raises ConnectionFailed.
        """
        if not any(unit.broken for unit in self.owned.values()):
            return
        async with self._committing:
            old = [unit for unit in self.owned.values() if unit.broken and not unit.draining]
            new = [unit.anew() for unit in old]
            try:
                await self._commit(new)
            except LeaseLost:
                return
            kept = [pair for pair in zip(old, new, strict=True) if self.owned.get(pair[0].number) is pair[0]]
            self._drop([unit for unit, _ in kept], "its log on Kafka begins anew")
            self.owned |= {unit.number: unit for _, unit in kept}
        self._sources(part.source for _, unit in kept for part in unit.parts)

    # --- commit ------------------------------------------------------------------------------------------------

    async def commit(self, units: Iterable[Unit]) -> None:
        """Commit what has changed in these, in one request with all else. Raises LeaseLost or ConnectionFailed."""
        wanted = list(units)
        async with self._committing:
            if any(unit.dirty for unit in wanted):
                await self._commit([unit for unit in self.owned.values() if unit.dirty])

    async def _commit(self, units: Collection[Unit], *, leaving: bool = False) -> None:
        taken = [(unit, set(unit.dirty)) for unit in units]
        for unit, _ in taken:
            unit.dirty.clear()
        try:
            while True:
                moment = self._session.brokers.time.moment()
                positions = {
                    part.place: part.progress.committed(leaving=leaving, limit=self.room, moment=moment)
                    for _, parts in taken
                    for part in parts
                }
                try:
                    await self.membership.commit(positions)
                    break
                except ConnectionFailed as error:
                    if not isinstance(error.__cause__, Errors.OffsetMetadataTooLargeError) or not self.room:
                        raise
                    self.room = self.room // 2 if self.room > LEAST_ROOM else 0
        except BaseException:  # cancelled, too, they are left for the next commit
            for unit, parts in taken:
                unit.dirty |= parts
            raise

    # --- go ----------------------------------------------------------------------------------------------------

    async def _give_up(self, units: Collection[Unit]) -> None:
        deadline = time.monotonic() + self._session.settings.drain
        await self._ownership.on_revoke([unit.number for unit in units], deadline)
        ours = [unit for unit in units if self.owned.get(unit.number) is unit]
        await self._hand_over(ours)
        for unit in ours:
            self._remove(unit)
        self.membership.rejoin()

    async def _hand_over(self, units: Collection[Unit]) -> None:
        """The last commit, tried while it may be taken: without it the units look like those of a dead member."""
        for unit in units:
            unit.dirty.update(unit.parts)
        while any(self.owned.get(unit.number) is unit for unit in units):
            try:
                async with self._committing:
                    await self._commit(units, leaving=True)
            except LeaseLost:
                return
            except ConnectionFailed:
                await asyncio.sleep(COMMIT_AGAIN)
            else:
                return

    def _remove(self, unit: Unit) -> None:
        if self.owned.get(unit.number) is unit:
            del self.owned[unit.number]
            self._gone(unit)

    def _lost(self, reason: str) -> None:
        self._drop(list(self.owned.values()), reason)
        self._woken()

    def _drop(self, units: Collection[Unit], reason: str) -> None:
        held = [
            entry.delivery
            for unit in units
            for part in unit.parts
            for entry in part.progress.unfinished.values()
            if entry.delivery is not None
        ]
        for unit in units:
            self._remove(unit)
        if held:
            self._ownership.on_lost(held, reason)

    async def leave(self) -> None:
        """Give everything up and leave the group."""
        self._leaving = True
        try:
            async with asyncio.timeout(self._session.settings.operation_timeout):
                async with self._sharing:  # what is being taken has our name on it: it is given back too
                    pass
                await self._last_commit()
        except (MessagingError, TimeoutError) as error:
            logger.warning(
                "The last commit of %s on Kafka failed: %s. What was in this process is handled again.",
                self.where,
                str(error) or "no answer in time",
                extra={"topic": self._group.topic.name, "group": self._group.name},
            )
        finally:  # cut off, too: a member that nobody reads for would keep its partitions from others
            for unit in list(self.owned.values()):
                self._remove(unit)
            await self.membership.leave()

    async def _last_commit(self) -> None:
        """Commit all that is owned, again while the group changes or moves; soon given up where nobody answers."""
        began = time.monotonic()
        while self.membership.joined and self.owned:
            units = list(self.owned.values())
            for unit in units:
                unit.dirty.update(unit.parts)
            try:
                async with self._committing:
                    await self._commit(units, leaving=True)
            except ConnectionFailed as error:
                answered = not isinstance(error.__cause__, _UNANSWERED)
                if not answered and time.monotonic() - began > UNREACHED_FOR:
                    raise
                await asyncio.sleep(COMMIT_AGAIN)
            else:
                return


def _explain(taken: Collection[Progress]) -> None:
    """What ran alone when its process died explains the crashes: its neighbours are suspected no more (3)."""
    if not any(entry.alone for one in taken for entry in one.unfinished.values()):
        return
    for one in taken:
        one.returns = 0
        for entry in one.unfinished.values():
            if not entry.alone:
                entry.returns = 0
