"""Settling deliveries of owned partitions: each exchange is refused where the lease is another's."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, cast

from messaging.adapter import DONE, Hold, SettleError
from messaging.errors import ConnectionFailed, LeaseLost, MessagingError
from messaging.message import Ack, Reject, Release
from messaging_redis.entries import decode_copy
from messaging_redis.scripts import FENCED_ACK, FENCED_SETTLE, GIVE_BACK
from messaging_redis.settling import TRIMMED, packed, tell_trimmed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging.adapter import RawDelivery, Settled, Settlement
    from messaging_redis.connection import Connection
    from messaging_redis.entries import Token
    from messaging_redis.keys import GroupKeys
    from messaging_redis.line import Argument
    from messaging_redis.ownership import Partition

_CHUNK = 128
_ACKS = 1000
"""Ids in one script call: they pass through Lua's stack."""
CONSUMER = "partition-owner"
"""One name for whoever owns a partition: nothing has to be claimed when the owner changes."""


class FencedSettler:
    """Settles for one member of an ordered group."""

    def __init__(self, connection: Connection, keys: GroupKeys, where: str) -> None:
        self._connection = connection
        self._keys = keys
        self._where = where

    async def settle(
        self, settlements: Sequence[Settlement], owned: Mapping[int, Partition]
    ) -> list[Settled]:
        """One result each. Acks without anything recorded go as one list of ids per stream."""
        owned = dict(owned)  # what is lost meanwhile is refused by the server
        results: list[Settled] = [DONE] * len(settlements)
        acks: dict[tuple[int, str], list[int]] = {}
        others: list[int] = []
        for at, settlement in enumerate(settlements):
            delivery = settlement.delivery
            token: Token = delivery.token
            partition = owned.get(delivery.partition)
            if token.settled:
                continue
            if partition is None or partition.epoch != delivery.fence:
                results[at] = SettleError(self._lost(delivery))
            elif isinstance(settlement.outcome, Release):
                # It stays with us, uncounted and in order; what is still here at the end is given back.
                results[at] = Hold(time.monotonic() + settlement.after)
            elif isinstance(settlement.outcome, Ack) and _is_plain(delivery):
                acks.setdefault((delivery.partition, token.stream), []).append(at)
            else:
                others.append(at)
        if acks:
            await self._settle_acks(acks, settlements, owned, results)
        for start in range(0, len(others), _CHUNK):
            await self._settle_others(others[start : start + _CHUNK], settlements, owned, results)
        return results

    async def _settle_acks(
        self,
        acks: Mapping[tuple[int, str], list[int]],
        settlements: Sequence[Settlement],
        owned: Mapping[int, Partition],
        results: list[Settled],
    ) -> None:
        parts: list[tuple[int, str, list[int]]] = []
        for (number, stream), places in acks.items():
            parts += [
                (number, stream, places[start : start + _ACKS]) for start in range(0, len(places), _ACKS)
            ]
        arguments: list[Argument] = [self._keys.name]
        for number, _, places in parts:
            arguments += [number, owned[number].key, len(places)]
            arguments += [settlements[at].delivery.token.id for at in places]
        try:
            replies = await self._connection.run(
                FENCED_ACK, [self._keys.leases, *(stream for _, stream, _ in parts)], arguments
            )
        except MessagingError as error:
            for _, _, places in parts:
                for at in places:
                    results[at] = SettleError(error)
            return
        for (_, _, places), reply in zip(parts, replies, strict=True):
            for at in places:
                delivery = settlements[at].delivery
                if reply:
                    _over(delivery, owned)
                else:
                    results[at] = SettleError(self._lost(delivery))

    async def _settle_others(
        self,
        places: Sequence[int],
        settlements: Sequence[Settlement],
        owned: Mapping[int, Partition],
        results: list[Settled],
    ) -> None:
        try:
            replies = await self._call([settlements[at] for at in places], owned)
            for at, reply in enumerate(replies):
                if reply == TRIMMED:
                    tell_trimmed(settlements[places[at]].delivery, self._where)
                    (replies[at],) = await self._call([settlements[places[at]]], owned, whole=True)
        except MessagingError as error:
            for at in places:
                results[at] = SettleError(error)
            return
        for at, reply in zip(places, replies, strict=True):
            results[at] = self._result(settlements[at], reply.decode(), owned)

    async def _call(
        self, items: Sequence[Settlement], owned: Mapping[int, Partition], *, whole: bool = False
    ) -> list[bytes]:
        """`whole`: with what this member has of the entries, in place of what the stream has."""
        streams = sorted({settlement.delivery.token.stream for settlement in items})
        arguments: list[Argument] = [self._keys.name]
        for settlement in items:
            delivery = settlement.delivery
            token: Token = delivery.token
            outcome = settlement.outcome
            kind = "ack" if isinstance(outcome, Ack) else "reject" if isinstance(outcome, Reject) else "hold"
            arguments += [kind, 5 + streams.index(token.stream), delivery.partition]
            arguments += [owned[delivery.partition].key, token.source, token.id, delivery.attempt]
            arguments += [settlement.failure or "", delivery.deliveries, delivery.position]
            arguments += [math.ceil(settlement.after * 1000), _packed(delivery) if whole else ""]
        keys = self._keys
        replies = await self._connection.run(
            FENCED_SETTLE, [keys.leases, keys.failures, keys.guard, keys.dead, *streams], arguments
        )
        return cast("list[bytes]", replies)

    def _result(self, settlement: Settlement, reply: str, owned: Mapping[int, Partition]) -> Settled:
        delivery = settlement.delivery
        if reply == "lost":
            return SettleError(self._lost(delivery))
        if reply not in {"ok", "gone"}:
            what = f"message {delivery.message.id} of {self._where} could not be settled on Redis: {reply}"
            return SettleError(ConnectionFailed(what))
        if reply == "ok" and not isinstance(settlement.outcome, Ack | Reject):
            delivery.token.marked = False
            return Hold(time.monotonic() + settlement.after)
        _over(delivery, owned)
        return DONE

    def _lost(self, delivery: RawDelivery) -> LeaseLost:
        return LeaseLost(
            f"message {delivery.message.id} of {self._where}: partition {delivery.partition} has another owner on Redis"
        )

    async def give_back(self, partitions: Sequence[Partition]) -> None:
        """What is held was not handled: it is not counted, and comes again in its order."""
        held = [(partition, delivery) for partition in partitions for delivery in partition.held.values()]
        for start in range(0, len(held), _CHUNK):
            part = held[start : start + _CHUNK]
            streams = sorted({delivery.token.stream for _, delivery in part})
            arguments: list[Argument] = [self._keys.name, CONSUMER]
            for partition, delivery in part:
                token: Token = delivery.token
                arguments += [
                    3 + streams.index(token.stream),
                    partition.number,
                    partition.key,
                    token.field,
                    token.id,
                ]
            await self._connection.run(GIVE_BACK, [self._keys.leases, self._keys.guard, *streams], arguments)


def _packed(delivery: RawDelivery) -> bytes:
    """The fields of the message; a redriven one has them in its copy."""
    token: Token = delivery.token
    fields = delivery.native
    return packed(decode_copy(fields, token.id).fields if token.source.startswith("r") else fields)


def _is_plain(delivery: RawDelivery) -> bool:
    token: Token = delivery.token
    return delivery.attempt == 1 and not token.marked and token.source.startswith("m")


def _over(delivery: RawDelivery, owned: Mapping[int, Partition]) -> None:
    delivery.token.settled = True
    partition = owned.get(delivery.partition)
    if partition is not None:
        partition.held.pop(delivery.token.field, None)
