"""Settling deliveries of members that share a group.

Acks are plain XACKs of many ids: what was handled is handled, whoever has it now. What is copied (retry, release, dead
letter) goes through one script that checks the owner, stores the copy, then gives the entry up (1).
"""

from __future__ import annotations

import logging
from math import ceil
from typing import TYPE_CHECKING, cast

from messaging.adapter import DONE, SettleError, Settlement
from messaging.errors import ConnectionFailed, LeaseLost, MessagingError
from messaging.message import Ack, Reject, Release, Retry
from messaging_redis.connection import translate
from messaging_redis.entries import pack
from messaging_redis.scripts import ACK_COPIES, SETTLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.adapter import RawDelivery, Settled
    from messaging_redis.connection import Connection
    from messaging_redis.entries import Token
    from messaging_redis.keys import GroupKeys
    from messaging_redis.line import Argument

logger = logging.getLogger("messaging")

RETRY = "t"
"""The name of the retry stream among the streams of a group."""
_CHUNK = 128
"""Settlements in one script call: the server runs nothing else meanwhile."""
_ACKS = 500
TRIMMED = b"trimmed"
"""The answer of a script that found no entry to copy for what is pending and ours."""


def packed(fields: list[bytes]) -> bytes:
    """The fields of an entry, for a script; never nothing, which would ask it to look for them."""
    return pack([*fields] or ["", ""])


def tell_trimmed(delivery: RawDelivery, where: str) -> None:
    """Somebody removed the entry while it was handled: who trims this takes unread messages as well."""
    logger.warning(
        "Message %s of %s was removed from its stream on Redis while it was handled, by XTRIM, MAXLEN, XDEL or its "
        "retention: what this member has of it is stored instead",
        delivery.message.id,
        where,
        extra={"message_id": delivery.message.id},
    )


class SharedSettler:
    """Settles for one member, and knows what it holds."""

    def __init__(
        self,
        connection: Connection,
        keys: GroupKeys,
        streams: dict[str, str],
        *,
        consumer: str,
        where: str,
        delayed: Callable[[float], None],
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._streams = streams
        self._consumer = consumer
        self._where = where
        self._delayed = delayed
        self.held: dict[RawDelivery, None] = {}
        """What was handed over and is not settled, in order. A later hand-over of the same entry is another one."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """One result each, in order."""
        results: list[Settled] = [DONE] * len(settlements)
        acks: dict[str, list[int]] = {}
        copies: list[int] = []
        for at, settlement in enumerate(settlements):
            token: Token = settlement.delivery.token
            if token.settled:
                continue
            if isinstance(settlement.outcome, Ack):
                acks.setdefault(token.source, []).append(at)
            else:
                copies.append(at)
        if acks:
            await self._settle_acks(acks, settlements, results)
        for start in range(0, len(copies), _CHUNK):
            places = copies[start : start + _CHUNK]
            for at, result in zip(
                places, await self._settle_copies([settlements[at] for at in places]), strict=True
            ):
                results[at] = result
        return results

    async def _settle_acks(
        self, acks: dict[str, list[int]], settlements: Sequence[Settlement], results: list[Settled]
    ) -> None:
        commands: list[list[Argument]] = []
        parts: list[list[int]] = []
        marks: list[str] = []
        for source, places in acks.items():
            stream = self._streams[source]
            for start in range(0, len(places), _ACKS):
                part = places[start : start + _ACKS]
                tokens: list[Token] = [settlements[at].delivery.token for at in part]
                ids = [token.id for token in tokens]
                if source == RETRY:
                    # Deleted only here: elsewhere it frees no memory and makes the lag unknown.
                    commands.append(ACK_COPIES.call([stream], [self._keys.name, *ids]))
                else:
                    commands.append(["XACK", stream, self._keys.name, *ids])
                parts.append(part)
                marks += [token.field for token in tokens if token.marked]
        if marks:
            commands.append(["HDEL", self._keys.guard, *marks])
            parts.append([])
        try:
            replies = await self._connection.exchange(self._keys.retry, commands)
        except MessagingError as error:
            for at in (at for places in acks.values() for at in places):
                results[at] = SettleError(error)
            return
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, Exception):
                refused = SettleError(translate(reply, "XACK"))
                for at in part:
                    results[at] = refused
        for at in (at for places in acks.values() for at in places):
            if results[at] is DONE:
                self._over(settlements[at].delivery)

    async def _settle_copies(self, items: Sequence[Settlement]) -> list[Settled]:
        try:
            replies = await self._run(items)
        except MessagingError as error:
            return [SettleError(error)] * len(items)
        return [self._result(item, reply.decode()) for item, reply in zip(items, replies, strict=True)]

    async def _run(self, items: Sequence[Settlement]) -> list[bytes]:
        replies = await self._call(items)
        for at, reply in enumerate(replies):
            if reply == TRIMMED:
                tell_trimmed(items[at].delivery, self._where)
                (replies[at],) = await self._call(items[at : at + 1], whole=True)
        return replies

    async def _call(self, items: Sequence[Settlement], *, whole: bool = False) -> list[bytes]:
        """`whole`: with what this member has of the entries, in place of what the stream has."""
        keys = self._keys
        sources = list(self._streams)
        arguments: list[Argument] = [keys.name, self._consumer]
        soonest: float | None = None
        for item in items:
            delivery = item.delivery
            token: Token = delivery.token
            failed = isinstance(item.outcome, Retry | Reject)
            kind = "reject" if isinstance(item.outcome, Reject) else "retry"
            # Rounded up: never early.
            delay = 0 if kind == "reject" else ceil(max(0.0, item.after) * 1000)
            arguments += [
                kind,
                5 + sources.index(token.source),
                int(token.source == RETRY),
                token.id,
                token.field,
            ]
            arguments += [delay, delivery.attempt if failed else delivery.attempt - 1]
            arguments += [
                (item.failure if failed else delivery.failure) or "",
                0 if failed else delivery.returns,
            ]
            arguments += [delivery.deliveries, delivery.position, packed(delivery.native) if whole else ""]
            if delay:
                soonest = item.after if soonest is None else min(soonest, item.after)
        streams = list(self._streams.values())
        replies = await self._connection.run(
            SETTLE, [keys.guard, keys.dead, keys.delayed, keys.retry, *streams], arguments
        )
        if soonest is not None:
            self._delayed(soonest)
        return cast("list[bytes]", replies)

    def _result(self, settlement: Settlement, reply: str) -> Settled:
        delivery = settlement.delivery
        if reply in {"ok", "gone"}:
            self._over(delivery)
            return DONE
        described = f"message {delivery.message.id} of {self._where}"
        if reply == "lost":
            self.forget(delivery)
            return SettleError(LeaseLost(f"{described} has another owner on Redis: its lease had ended"))
        return SettleError(ConnectionFailed(f"{described} could not be settled on Redis: {reply}"))

    def _over(self, delivery: RawDelivery) -> None:
        delivery.token.settled = True
        self.held.pop(delivery, None)

    def forget(self, delivery: RawDelivery) -> None:
        """It is held no more."""
        self.held.pop(delivery, None)

    async def give_back(self, deliveries: Sequence[RawDelivery]) -> None:
        """Uncounted, at once, to whoever reads next. Raises what the connection raises."""
        for start in range(0, len(deliveries), _CHUNK):
            part = [Settlement(delivery, Release()) for delivery in deliveries[start : start + _CHUNK]]
            for settlement, reply in zip(part, await self._run(part), strict=True):
                self._result(settlement, reply.decode())
