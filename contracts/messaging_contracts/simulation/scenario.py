"""What happens in one simulated history: drawn from its seed, few kinds of trouble at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from messaging.subscription import PROGRESS_LEASE
from messaging_contracts.simulation.faults import BULK_KINDS, LETTER_KINDS, REQUEST_KINDS, drawn

if TYPE_CHECKING:
    from messaging.middleware.expiry import OnExpired

BEHAVIOURS = ("raise", "retry", "reject", "release", "release_later", "slow", "hang", "stubborn")
"""What a handler may do instead of succeeding; `stubborn` ignores its cancellation for a while."""
UPHEAVALS = ("join", "leave", "crash", "freeze", "restart", "outage")
"""What may happen to the members and to the broker."""
ASKING = 0.15
"""How often a history has requests, where members do not consume by hand."""
OPERATED = 0.25
"""How often a history has an operator."""
ONCE = 0.15
"""How often one has `idempotent_publish`."""
IN_BULK = 0.2
"""How often one has publishers that call `publish_many`."""
EXPIRING = 0.2
"""How often messages expire."""
CONTENDED = 0.3
"""How often an idempotent group has two copies of messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Of a history that has requests. Durations in virtual seconds."""

    lives: int
    """How many requesters there are, one after the other: all but the last leave while they wait for replies."""
    at_once: int
    each: int
    """So many after each other, `at_once` times beside each other."""
    impatience: float
    """How often a requester cancels what it asked."""
    concurrency: int
    timeout: float | None
    idempotent: bool
    faults: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulks:
    """Of a history whose publishers call `publish_many`, beside those that do not."""

    publishers: int
    calls: int
    """Of each publisher, one after the other."""
    at_once: int
    """So many calls take the place of one, at most."""
    most: int
    """Messages in one call."""
    impatience: float
    """How often a call has a short timeout, or is cancelled."""
    through: bool
    """Whether there is publish middleware."""
    apart: bool
    """Whether calls at once begin one after the other, behind what is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Durations in virtual seconds."""

    ordered: bool
    partitions: int
    keys: int
    publishers: int
    messages: int
    """Of each publisher and key."""
    burst: float
    """How often several messages of a key are published at once."""
    impatience: float
    """How often a publish has a short timeout, or is cancelled."""
    members: int
    concurrency: int
    prefetch: int
    window: int
    lease: float
    attempts: int
    delay: float
    timeout: float | None
    grace: float
    behaviours: dict[str, float]
    upheavals: tuple[str, ...]
    faults: dict[str, float]
    poison: bool
    """One message crashes each process that handles it."""
    delayed: float
    """How often a message is published with a delay; never on an ordered topic, which takes none (5)."""
    idempotent: bool
    pulling: float
    """How often a member consumes by hand; never in an idempotent group."""
    hold_key: bool
    """Whether what fails at its last attempt is retried for ever, and its key waits; only on an ordered topic (11)."""
    requests: Requests | None
    """Never where members consume by hand: nobody would answer."""
    key_lease: float
    """Of an idempotency key: short ones end while handlers run, unless they are extended."""
    once: bool
    """Whether publishes are idempotent."""
    operated: int
    """How often an operator looks at the group, and redrives or purges its dead letters."""
    bulks: Bulks | None
    expiring: float
    """How often a message is published with a time after which nobody handles it."""
    on_expired: OnExpired


def scenario(seed: int) -> Scenario:
    """The scenario of this seed."""
    made = _operated(_publishing(Random(seed)), Random(f"operator {seed}"))
    made = _contended(made, Random(f"key {seed}"))
    made = _in_bulk(made, Random(f"bulk {seed}"))
    made = _expiring(made, Random(f"expiry {seed}"))
    # With draws of its own: histories without requests stay what they were.
    random = Random(f"requests {seed}")
    if made.pulling or random.random() > ASKING:
        return made
    asked = _asking(random)
    return replace(made, requests=asked, faults=made.faults | asked.faults)


def _publishing(random: Random) -> Scenario:
    lease = random.choice((2.0, 10.0, 30.0))
    share = random.choice((0.0, 0.3, 0.8))
    behaviours = {name: random.choice((0.02, 0.1, 0.25)) for name in BEHAVIOURS if random.random() < share}
    share = random.choice((0.0, 0.3, 0.8))
    ordered, idempotent = random.random() < 0.7, random.random() < 0.3
    hold_key = ordered and random.random() < 0.2
    return Scenario(
        ordered=ordered,
        partitions=random.randint(1, 4),
        keys=random.randint(1, 4),
        publishers=random.randint(1, 2),
        messages=random.randint(1, 12),
        burst=random.choice((0.0, 0.0, 0.3, 1.0)),
        impatience=random.choice((0.0, 0.0, 0.1)),
        members=random.randint(1, 3),
        concurrency=random.choice((1, 2, 4, 16)),
        prefetch=random.choice((1, 2, 5, 32)),
        window=random.choice((1, 3, 1000)),
        lease=lease,
        attempts=1 if hold_key else random.choice((1, 2, 3, 3, 5)),
        delay=random.choice((0.0, 0.1, 1.0, 7.0)),
        timeout=random.choice((None, None, 0.5, 5.0)),
        grace=random.choice((0.0, 1.0, 30.0)),
        behaviours=behaviours,
        upheavals=tuple(name for name in UPHEAVALS if random.random() < share),
        faults=drawn(random),
        poison=random.random() < 0.08,
        delayed=0.0 if ordered else random.choice((0.0, 0.2, 1.0)),
        idempotent=idempotent,
        pulling=0.0 if idempotent else random.choice((0.0, 0.0, 0.5, 1.0)),
        hold_key=hold_key,
        requests=None,
        key_lease=PROGRESS_LEASE,
        once=False,
        operated=0,
        bulks=None,
        expiring=0.0,
        on_expired="drop",
    )


def _contended(made: Scenario, random: Random) -> Scenario:
    """Short leases of keys; for some groups two copies of messages too, which members handle for longer than that, and
    while others stand still.
    """
    made = replace(made, key_lease=random.choice((PROGRESS_LEASE, 3.0, 1.0)))
    if not made.idempotent or random.random() > CONTENDED:
        return made
    return replace(
        made,
        ordered=False,
        hold_key=False,
        members=3,
        concurrency=4,
        timeout=None,
        key_lease=1.0,
        once=False,
        behaviours={"slow": 0.5},
        upheavals=(*made.upheavals, "freeze"),
        faults=made.faults | {"publish_twice": 0.2},
    )


def _operated(made: Scenario, random: Random) -> Scenario:
    """With draws of its own too."""
    if random.random() < ONCE:
        made = replace(made, once=True)
    if random.random() > OPERATED:
        return made
    share = random.choice((0.0, 0.3, 0.8))
    faults = {kind: random.choice((0.05, 0.2, 0.4)) for kind in LETTER_KINDS if random.random() < share}
    return replace(made, operated=random.randint(2, 8), faults=made.faults | faults)


def _expiring(made: Scenario, random: Random) -> Scenario:
    if random.random() > EXPIRING:
        return made
    on_expired: OnExpired = "dead_letter" if random.random() < 0.5 else "drop"
    return replace(made, expiring=random.choice((0.2, 1.0)), on_expired=on_expired)


def _in_bulk(made: Scenario, random: Random) -> Scenario:
    """Often with what fails a part of a call, or leaves it without an answer: a broker that is out of reach."""
    if random.random() > IN_BULK:
        return made
    bulks = Bulks(
        publishers=random.choice((1, 1, 2)),
        calls=random.randint(1, 8),
        at_once=random.choice((1, 2, 4)),
        most=random.choice((2, 6, 6, 12, 60)),
        impatience=random.choice((0.0, 0.1, 0.5)),
        through=random.random() < 0.2,
        apart=random.random() < 0.4,
    )
    share = random.choice((0.0, 0.3, 0.8))
    faults = {kind: random.choice((0.05, 0.2, 0.4)) for kind in BULK_KINDS if random.random() < share}
    if random.random() < share:
        faults["stuck"] = 0.05
    away = ("outage",) if random.random() < share else ()
    return replace(made, bulks=bulks, faults=made.faults | faults, upheavals=(*made.upheavals, *away))


def _asking(random: Random) -> Requests:
    share = random.choice((0.0, 0.3, 0.8))
    return Requests(
        lives=random.choice((1, 1, 2)),
        at_once=random.choice((1, 2, 4)),
        each=random.randint(1, 4),
        impatience=random.choice((0.0, 0.0, 0.2)),
        concurrency=random.choice((1, 2, 16)),
        timeout=random.choice((None, None, 0.5)),
        idempotent=random.random() < 0.3,
        faults={kind: random.choice((0.05, 0.2, 0.4)) for kind in REQUEST_KINDS if random.random() < share},
    )
