"""Settling: copies are written and confirmed first, then one commit for all that was settled (1).

A record that is done leaves the partition's progress. If the commit fails, only the commit is made again: what was
copied is not copied twice.

A copy that does not fit, even compressed, is no reason to settle for ever: a retry is held by this member as on an
ordered group, a dead letter is cut.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, inf
from typing import TYPE_CHECKING

from messaging.adapter import DONE, Hold, SettleError
from messaging.envelope import NOT_BEFORE
from messaging.errors import (
    ConnectionFailed,
    LeaseLost,
    MessageTooLarge,
    MessagingError,
    PublishError,
    TopicNotFound,
)
from messaging.message import Ack, Reject, Release, Retry
from messaging.oversize import cut
from messaging.shielded import given_up, shielded
from messaging_kafka import tiers
from messaging_kafka.records import COPY_ROOM, ORIGIN, WAIT, attempts, copy, parcel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import GroupSpec, RawDelivery, Settled, Settlement
    from messaging_kafka.exchange import Fate
    from messaging_kafka.partitions import Part, Partitions, Unit
    from messaging_kafka.progress import Entry
    from messaging_kafka.records import Parcel
    from messaging_kafka.session import Session


@dataclass(slots=True, eq=False)
class Token:
    """Where a delivery came from."""

    unit: Unit
    part: Part
    offset: int
    entry: Entry
    handed: float = inf
    """When it was handed out, in monotonic seconds."""
    known: bool = False
    """That it was handed out is committed."""
    done: bool = False
    """It is finished here; its commit may still be under way."""
    large: bool = False
    """It does not fit into a copy: it stays where it is."""


class Settler:
    """Settles for one member."""

    def __init__(self, session: Session, group: GroupSpec, partitions: Partitions) -> None:
        self._session = session
        self._group = group
        self._partitions = partitions
        self._writing: asyncio.Task[None] | None = None
        self._moves: set[asyncio.Task[list[RawDelivery]]] = set()

    async def close(self) -> None:
        """Wait until what is being written is marked as done, for as long as a confirmation may take."""
        tasks = {*self._moves, *([self._writing] if self._writing else [])}
        await given_up(tasks, self._session.settings.confirm_timeout)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """One result each, in order. Cancelled, it still marks what was copied: that is never copied twice."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        results: list[Settled] = [DONE] * len(settlements)
        units: dict[Unit, list[int]] = {}
        copies: list[tuple[int, Parcel]] = []
        for at, settlement in enumerate(settlements):
            delivery = settlement.delivery
            token: Token = delivery.token
            unit = token.unit
            if self._partitions.owner(delivery) is None:
                if not token.done or unit.dirty:
                    results[at] = self._lost(delivery)
                continue
            if token.done:
                if token.part in unit.dirty:
                    units.setdefault(unit, []).append(at)
                continue
            copied = self._copy(settlement)
            if copied is not None:
                copies.append((at, copied))
                continue
            if isinstance(settlement.outcome, Ack):
                self._finish(token)
            else:
                results[at] = self._hold(settlement)
                if isinstance(settlement.outcome, Release):
                    continue
            units.setdefault(unit, []).append(at)
        if copies:
            self._writing = asyncio.create_task(self._write(copies, settlements, results, units))
            await shielded(self._writing)
        await self._commit(settlements, results, units)
        return results

    def _copy(self, settlement: Settlement) -> Parcel | None:
        """What is written before the record is done; None where nothing is."""
        delivery, outcome = settlement.delivery, settlement.outcome
        if isinstance(outcome, Reject):
            control = attempts(delivery.attempt, settlement.failure)
            return copy(delivery.native, delivery, self._session.names.dead(self._group), 0, control)
        if isinstance(outcome, Retry) and not self._group.ordered:
            control = attempts(delivery.attempt + 1, settlement.failure)
            return self._delayed(delivery, settlement.after, control)
        if isinstance(outcome, Release) and settlement.after > 0 and not self._group.ordered:
            # Held, what waits for long would fill the window of this member and be lost to others with it (5).
            control = attempts(delivery.attempt, delivery.failure)
            return self._delayed(delivery, settlement.after, control)
        return None

    def _delayed(
        self, delivery: RawDelivery, after: float, control: dict[str, str], shared: int = 0
    ) -> Parcel:
        partition = tiers.partition_for(after, shared)
        after = max(after, 0.0)
        # Counted from when a broker keeps the copy; the time of day is for members of an earlier version.
        control = {**control, WAIT: _milliseconds(after), NOT_BEFORE: _milliseconds(time.time() + after)}
        return copy(delivery.native, delivery, self._session.names.retry(self._group), partition, control)

    async def _write(
        self,
        copies: Sequence[tuple[int, Parcel]],
        settlements: Sequence[Settlement],
        results: list[Settled],
        units: dict[Unit, list[int]],
    ) -> None:
        fates = await self._store([copied for _, copied in copies])
        large = [number for number, fate in enumerate(fates) if isinstance(fate, MessageTooLarge)]
        letters = [number for number in large if isinstance(settlements[copies[number][0]].outcome, Reject)]
        if letters:
            cuts = [self._cut(settlements[copies[number][0]], copies[number][1]) for number in letters]
            for number, fate in zip(letters, await self._session.writer.write_copies(cuts), strict=True):
                fates[number] = fate
        for (at, _), fate in zip(copies, fates, strict=True):
            delivery = settlements[at].delivery
            token: Token = delivery.token
            if isinstance(fate, MessageTooLarge) and isinstance(settlements[at].outcome, Retry):
                token.large = True
                results[at] = self._hold(settlements[at])
                units.setdefault(token.unit, []).append(at)
            elif isinstance(fate, PublishError):
                results[at] = SettleError(
                    ConnectionFailed(
                        f"message {delivery.message.id} of {self._partitions.where}: its copy was not stored: {fate}"
                    )
                )
            elif self._partitions.owner(delivery) is None:
                results[at] = self._lost(delivery)
            else:
                self._finish(token)
                units.setdefault(token.unit, []).append(at)

    async def _store(self, copies: Sequence[Parcel]) -> list[Fate]:
        """Write these. Nobody reads the topic of dead letters: that it was deleted is seen by who writes to it (25)."""
        fates = await self._session.writer.write_copies(copies)
        dead = self._session.names.dead(self._group)
        unwritten = [
            number
            for number, fate in enumerate(fates)
            if isinstance(fate, TopicNotFound) and copies[number].topic == dead
        ]
        if unwritten and await self._restored():
            again = await self._session.writer.write_copies([copies[number] for number in unwritten])
            for number, fate in zip(unwritten, again, strict=True):
                fates[number] = fate
        return fates

    async def _restored(self) -> bool:
        try:
            return await self._session.topology.restore(self._group)
        except MessagingError:  # it is settled again, and tried again
            return False

    def _cut(self, settlement: Settlement, whole: Parcel) -> Parcel:
        most = self._session.settings.max_message_bytes + COPY_ROOM
        now = datetime.fromtimestamp(time.time(), UTC)
        message, failure = cut(settlement, group=self._group.name, size=whole.size, most=most, now=now)
        control = {ORIGIN: settlement.delivery.position, **attempts(settlement.delivery.attempt, failure)}
        return parcel(message, whole.topic, whole.partition, control=control)

    def _finish(self, token: Token) -> None:
        token.done = True
        token.part.progress.finish(token.offset)
        token.unit.dirty.add(token.part)

    def _hold(self, settlement: Settlement) -> Settled:
        token: Token = settlement.delivery.token
        if isinstance(settlement.outcome, Retry):
            entry = token.entry
            entry.attempt = settlement.delivery.attempt + 1
            entry.returns, entry.alone = 0, False
            entry.due = time.monotonic() + settlement.after
            token.unit.dirty.add(token.part)
        return Hold(self._session.clock.monotonic() + settlement.after)

    async def _commit(
        self, settlements: Sequence[Settlement], results: list[Settled], units: dict[Unit, list[int]]
    ) -> None:
        if not units:
            return
        try:
            await self._partitions.commit(units)
        except LeaseLost:
            for places in units.values():
                for at in places:
                    results[at] = self._lost(settlements[at].delivery)
        except MessagingError as error:
            for places in units.values():
                for at in places:
                    results[at] = SettleError(error)

    def _lost(self, delivery: RawDelivery) -> SettleError:
        return SettleError(
            LeaseLost(
                f"message {delivery.message.id} of {self._partitions.where}: partition {delivery.partition} has "
                f"another owner on Kafka"
            )
        )

    async def move(
        self, deliveries: Sequence[RawDelivery], dues: Sequence[float], shared: int = 0
    ) -> list[RawDelivery]:
        """Write these to the tier for when they are due, in monotonic seconds; then they are done here.

        With `shared`, those that are due go to so many partitions that all members share.

        Returns those that were not written. Cancelled, it still marks what was written.
        """
        task = asyncio.create_task(self._move(deliveries, dues, shared), name="messaging-kafka-move")
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)
        return await shielded(task)

    async def _move(
        self, deliveries: Sequence[RawDelivery], dues: Sequence[float], shared: int
    ) -> list[RawDelivery]:
        ours: list[RawDelivery] = []
        left: list[RawDelivery] = []
        parcels: list[Parcel] = []
        for delivery, due in zip(deliveries, dues, strict=True):
            if delivery.token.large:
                left.append(delivery)
            elif self._partitions.owner(delivery) is not None:
                ours.append(delivery)
                after = due - time.monotonic()
                control = attempts(delivery.attempt, delivery.failure)
                parcels.append(self._delayed(delivery, after, control, shared))
        units: set[Unit] = set()
        for delivery, fate in zip(ours, await self._session.writer.write_copies(parcels), strict=True):
            if isinstance(fate, PublishError):
                delivery.token.large = isinstance(fate, MessageTooLarge)
                left.append(delivery)
            elif self._partitions.owner(delivery) is not None:
                self._finish(delivery.token)
                units.add(delivery.token.unit)
        if units:
            with suppress(MessagingError):  # the next commit of these partitions says it too
                await self._partitions.commit(units)
        return left


def _milliseconds(seconds: float) -> str:
    """Rounded up: a delay must not end early."""
    return f"{ceil(seconds * 1000) / 1000:.3f}"
