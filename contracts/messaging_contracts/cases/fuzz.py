"""Garbage over the wire: what another program writes is handled or becomes a dead letter, and nothing ends or loops.

What is written is random, but the same in every run: a failure can be looked at again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from messaging import Delivery, Outcome, RetryPolicy, Topic, fixed
from messaging_contracts.case import proves
from messaging_contracts.cases.foreign import CONTROL, FORGED, publish
from messaging_contracts.ledger import Ledger
from messaging_contracts.under_test import BrokerUnderTest

MESSAGES = 60
AT_ONCE = 10
KEYS = (
    "ce_partitionkey",
    "cloudEvents_partitionkey",
    "ce_partitionkeybase64",
    "cloudEvents_partitionkeybase64",
)
ATTRIBUTES = (
    "type",
    "time",
    "expirytime",
    "notbefore",
    "correlationid",
    "specversion",
    "messagingformat",
    "source",
)
VALUES = (
    *FORGED,
    "messaging.end",
    "messaging.generation.end",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "x" * 10_000,
    "\u202e\ufeff\u0001\t",
    "!not base64!",
    "{}",
)
CONTENT_TYPES = (
    None,
    "application/json",
    "application/json; charset=utf-16",
    "application/json; charset=no-such-charset",
    "text/plain; charset=idna",
    "application/x-nobody-knows",
    ";;;=",
    "x" * 200,
)
BODIES = (
    b"",
    b"null",
    b'{"a": 1}',
    b'{"a": "one"}',
    b'{"a": 1e999}',
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"\xff\xfe\x00\x00",
    "🦜".encode() * 500,
    b"\x00" * 100,
    b'{"a": ' + b"9" * 5000 + b"}",
)


@dataclass(frozen=True)
class Garbage:
    """One message of another program."""

    body: bytes
    content_type: str | None
    headers: dict[str, Any] = field(default_factory=dict[str, Any])


def garbage(seed: int, count: int, oddities: Mapping[str, Any]) -> Iterator[Garbage]:
    """The same for the same seed. Some have the oddities too."""
    draw = random.Random(seed)
    for _ in range(count):
        names = [f"messaging-{name}" for name in CONTROL]
        names += [prefix + name for name in ATTRIBUTES for prefix in ("ce_", "cloudEvents_")]
        names += [*KEYS, "Ünicode 🦜", "x" * 100, "messaging-partition", "traceparent"]
        headers: dict[str, Any] = {
            name: draw.choice(VALUES) for name in draw.sample(names, draw.randrange(7))
        }
        if draw.random() < 0.3:
            headers |= oddities
        known = draw.random() < 0.6
        body = draw.choice(BODIES) if known else draw.randbytes(draw.randrange(1, 2000))
        yield Garbage(body, draw.choice(CONTENT_TYPES), headers)


async def throw(broker: BrokerUnderTest, topic: Topic[Any], seed: int, count: int) -> None:
    """All of it is handled, or a dead letter that says why; and what comes behind it is handled."""
    ledger = Ledger()

    async def fail_often(delivery: Delivery[Any]) -> Outcome | None:
        if delivery.payload != "ours" and len(delivery.message.body) % 3 != 0:
            raise ValueError("no good")
        return None

    app = broker.app(
        topic, ledger, then=fail_often, retry=RetryPolicy(2, fixed(0.05)), on_expired="dead_letter"
    )
    async with app.running(broker.bus):
        written = list(garbage(seed, count, getattr(broker.target.foreign, "oddities", {})))
        for at in (0, *range(1, count, AT_ONCE)):
            await asyncio.gather(
                *(
                    publish(broker, topic, one.body, one.content_type, headers=one.headers)
                    for one in written[at : at + AT_ONCE if at else 1]
                )
            )
        sentinel = await broker.bus.publish(topic, "ours", key="k" if topic.ordered else None)
        await ledger.until(lambda: any(one.id == sentinel.id for one in ledger.done))
        dead = broker.bus.dead_letters(topic, group="billing")

        async def all_ended() -> bool:
            return len(ledger.done) - 1 + await dead.count() >= count

        async def not_red() -> bool:
            return (await broker.bus.health()).status != "red"

        await broker.eventually(all_ended, f"{count} messages handled or given up; there were {ledger!r}")
        await ledger.quiet()
        letters = [letter async for letter in dead.browse()]
        await broker.eventually(not_red, "the bus is in order")
    assert len(ledger.done) - 1 + len(letters) == count
    assert all(letter.cause and letter.reason for letter in letters), letters
    assert max(len(ledger.of(id)) for id in ledger.ids) <= 2, repr(ledger)


@proves("foreign", limit=60.0)
async def garbage_is_handled_or_given_up_with_a_reason(broker: BrokerUnderTest) -> None:
    """Random bytes, deep JSON, odd encodings and forged metadata end no subscription and start no loop (19, 25)."""
    await throw(broker, broker.topic(type=dict[str, int] | str), seed=1, count=MESSAGES)


@proves("foreign", limit=60.0)
async def garbage_stops_no_ordered_topic(broker: BrokerUnderTest) -> None:
    """The same on an ordered topic, with forged keys: no partition is stuck behind it (8, 10, 19)."""
    await throw(broker, broker.topic(ordered=True, type=dict[str, int] | str), seed=2, count=MESSAGES // 2)
