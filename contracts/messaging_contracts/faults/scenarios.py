"""The faults: each is a function that stages one, under load, on a broker of its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from messaging_contracts.faults.history import CLOCK_JUMPED, now
from messaging_contracts.faults.role import GROUP, TOPICS, topic_of
from messaging_contracts.faults.stage import AT_ONCE, OUTAGE

if TYPE_CHECKING:
    from messaging import DeadLetters
    from messaging_contracts.faults.ground import Ground, Offer, Resource
    from messaging_contracts.faults.processes import Process
    from messaging_contracts.faults.stage import Stage

Act: TypeAlias = "Callable[[Stage], Awaitable[None]]"

MOST_DEATHS = 8
"""More processes than this must not die of one message: three returns, the mark, one more alone, and two to spare."""
HOUR = 3600.0
SPECIAL = "publisher-1.0.3"
"""How the ids of the messages end at which a handler misbehaves: one of each topic."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `summary` is what the table calls it."""

    name: str
    summary: str
    act: Act
    needs: frozenset[Offer]
    """What a broker must offer to which it applies."""
    whole: bool
    """Whether it is tried with ten thousand messages."""
    short: tuple[str, ...]
    """The brokers on which it belongs to the short choice."""

    def applies_to(self, ground: Ground) -> bool:
        """Whether it can be tried there."""
        return self.needs <= ground.offers and self.name not in ground.leaves_out


_faults: dict[str, Fault] = {}


def fault(*needs: Offer, whole: bool = False, short: tuple[str, ...] = ()) -> Callable[[Act], Act]:
    """Register a fault: its function's name, and the first line of its docstring for the table."""

    def register(act: Act) -> Act:
        name = act.__name__
        summary = (act.__doc__ or "").strip().splitlines()[0].rstrip(".")
        _faults[name] = Fault(name, summary, act, frozenset(needs), whole, short)
        return act

    return register


def faults() -> Sequence[Fault]:
    """All faults, in the order they are written."""
    for module in ("pairs", "uses"):  # each registers its own, after these
        import_module(f"messaging_contracts.faults.{module}")
    return list(_faults.values())


# --- members -----------------------------------------------------------------------------------------------------


@fault("processes", short=("rabbitmq", "kafka"))
async def killed_member(stage: Stage) -> None:
    """Members killed with kill -9."""
    first, second = await stage.members(2)
    await stage.publish()
    await stage.published(1 / 4)
    await stage.arena.kill(first)
    third = await stage.arena.again(first, "member-3")
    await stage.published(1 / 2)
    await stage.busy(third)
    await stage.arena.kill(second)


@fault("processes")
async def frozen_member(stage: Stage) -> None:
    """A member frozen (SIGSTOP) beyond its lease, then woken."""
    frozen, other = await stage.members(2)
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(frozen)
    await stage.busy(other)
    since = now()
    frozen.signal(signal.SIGSTOP)
    await asyncio.sleep(max(6.0, 1.5 * stage.lease))
    frozen.signal(signal.SIGCONT)
    # It ends the connection of who is silent; elsewhere who wakes may be well at once.
    told_by = [frozen] if stage.ground.name == "rabbitmq" else []
    stage.arena.struck("frozen", since, frozen, told_by=told_by)


@fault()
async def members_come_and_go(stage: Stage) -> None:
    """Members joining and leaving every second."""
    present = await stage.members(2)
    await stage.publish()
    for number in range(3, 11):
        await asyncio.sleep(1)
        present.append(await stage.arena.start(f"member-{number}"))
        await stage.arena.leave(present.pop(0))


@fault()
async def shutdown_under_load(stage: Stage) -> None:
    """Members stopped (SIGTERM) under load: no fault, so no duplicates."""
    first, second = await stage.members(2, work=0.05)
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(first)
    third = await stage.arena.again(first, "member-3")
    await stage.arena.leave(first)
    await stage.busy(third)
    await stage.arena.leave(second)


@fault()
async def blocked_event_loop(stage: Stage) -> None:
    """A handler that blocks its event loop for 10 s."""
    await stage.members(2, quirk="block", special=SPECIAL, quirk_seconds=10.0)
    await stage.publish()


@fault()
async def parked_key(stage: Stage) -> None:
    """A key that fails for some seconds, with more messages waiting than may be prefetched: others go on."""
    stuck = "publisher-1.0"
    members = await stage.members(
        2, prefetch=4, concurrency=4, attempts=1000, retry_delay=0.5, stuck_key=stuck
    )
    await stage.publish()
    await stage.published(1 / 4)
    before = stage.arena.progress().succeeded
    progress = await stage.arena.until(
        lambda seen: seen.succeeded >= before + 200, "the other keys go on", stage.scale.patience
    )
    assert not any(f".{stuck}." in id for id in progress.done), "the stuck key was not stuck"
    for member in members:
        member.signal(signal.SIGUSR2)


@fault()
async def clock_jumps(stage: Stage) -> None:
    """A member's clock that jumps 5 s ahead, another's 5 s back, twice, while messages are retried."""
    ahead = await stage.arena.start("member-1", jump=5.0, failing=5)
    back = await stage.arena.start("member-2", jump=-5.0, failing=5)
    await stage.publish()
    for share in (1 / 4, 1 / 2):
        await stage.published(share)
        await stage.busy(ahead)
        await stage.busy(back)
        for member in (ahead, back):
            member.signal(signal.SIGUSR1)
            stage.arena.struck(CLOCK_JUMPED, now(), member, aftermath=inf, seconds=member.role.jump)


@fault()
async def wrong_clocks(stage: Stage) -> None:
    """A member's clock an hour ahead, another's an hour back, from the start: no excuse for any retry."""
    await stage.arena.start("member-1", ahead=HOUR, failing=5)
    await stage.arena.start("member-2", ahead=-HOUR, failing=5)
    await stage.publish()


@fault(short=("memory",))
async def handler_slower_than_lease(stage: Stage) -> None:
    """A handler that takes longer than the lease: no fault, so no duplicates."""
    await stage.members(2, quirk="slow", special=SPECIAL, quirk_seconds=1.5 * stage.lease)
    await stage.publish()


@fault()
async def handler_ignores_cancellation(stage: Stage) -> None:
    """A handler that ignores its cancellation when its member is stopped."""
    stubborn, _ = await stage.members(2, quirk="stubborn", special=SPECIAL, quirk_seconds=30.0, grace=1.0)
    await stage.publish()
    progress = await stage.arena.until(
        lambda seen: any(one.id.endswith(f".{SPECIAL}") for one in seen.begun.values()), "it runs", 60
    )
    running = {one.member for one in progress.begun.values() if one.id.endswith(f".{SPECIAL}")}
    for process in list(stage.arena.processes):
        if process.name in running:
            await stage.arena.again(stubborn, f"{process.name}-again")
            since = now()
            await stage.arena.leave(process)
            stage.arena.struck("a handler was left behind", since, process)


@fault("processes")
async def poison(stage: Stage) -> None:
    """A message that kills each process that handles it (kill -9)."""
    await _deadly(stage, "poison")


@fault("processes")
async def exiting_handler(stage: Stage) -> None:
    """A message whose handler raises SystemExit, which ends its process."""
    await _deadly(stage, "exit")


async def _deadly(stage: Stage, quirk: str) -> None:
    """Replace the processes that die of the two special messages, until these are dead letters."""
    members = await stage.members(2, quirk=quirk, special=SPECIAL)
    for member in members:
        member.expected_end = True
    await stage.publish()
    deaths = 0
    letters = [stage.arena.observer.dead_letters(topic_of(name), group=GROUP) for name in TOPICS]
    # By their ids: an innocent message that died with a process may be a dead letter before them.
    while not all([await _has_special(one) for one in letters]):
        for member in list(members):
            if member.code is not None:
                stage.arena.died(member)
                members.remove(member)
                deaths += 1
                assert deaths <= MOST_DEATHS * len(TOPICS), (
                    f"{deaths} processes died of {len(TOPICS)} messages"
                )
                members.append(await _replacement(stage, member, f"member-{2 + deaths}"))
        await asyncio.sleep(0.1)
    await stage.arena.bury()
    for kept in letters:
        innocent = [one.id async for one in kept.browse() if not one.id.endswith(f".{SPECIAL}")]
        assert not innocent, f"dead letters that end no process: {innocent}"
    # Who met the message last may still be about to end, although another has made it a dead letter by now.
    progress = stage.arena.progress()
    met = {one.member for one in progress.begun.values() if one.id.endswith(f".{SPECIAL}")}
    for member in members:
        if member.name in met:
            await member.ended(60)
            stage.arena.died(member)
        else:
            member.expected_end = False


async def _has_special(letters: DeadLetters) -> bool:
    """Whether the special message is among these."""
    return any([one.id.endswith(f".{SPECIAL}") async for one in letters.browse()])


async def _replacement(stage: Stage, member: Process, name: str) -> Process:
    """A process with the same role; it may die before it says that it is ready."""
    process = await stage.arena.spawn(
        name, url=member.url, quirk=member.role.quirk, special=member.role.special
    )
    process.expected_end = True
    return process


# --- the broker --------------------------------------------------------------------------------------------------


@fault("restart", whole=True)
async def restarted_broker(stage: Stage) -> None:
    """The broker restarted in an orderly way, twice, under publishing load."""
    url = await stage.way()
    await stage.members(2, url=url)
    await stage.publish(url=url)
    for share in (1 / 3, 1 / 2):
        await stage.published(share)
        await stage.restart_broker(kill=False)


@fault("restart", whole=True, short=("redis",))
async def killed_broker(stage: Stage) -> None:
    """The broker killed with kill -9, twice, under publishing load."""
    url = await stage.way()
    await stage.members(2, url=url)
    await stage.publish(url=url, at_once=AT_ONCE)
    for share in (1 / 3, 1 / 2):
        await stage.published(share)
        await stage.restart_broker(kill=True)


@fault("memory")
async def full_memory(stage: Stage) -> None:
    """The broker out of memory for some seconds."""
    await _full(stage, "memory")


@fault("disk")
async def full_disk(stage: Stage) -> None:
    """The broker's disk full for some seconds (RabbitMQ's alarm, Redis' MISCONF)."""
    await _full(stage, "disk")


@fault(short=("memory",))
async def deleted_group(stage: Stage) -> None:
    """The group deleted under its members: they end with an error, members started anew go on."""
    members = await stage.members(2)
    await stage.publish()
    await stage.all_done()
    for name in TOPICS:
        await stage.arena.observer.delete_group(topic_of(name), GROUP)
    for member in members:
        await stage.arena.ousted(member)
    await stage.arena.start("member-3")
    await stage.arena.start("member-4")
    await stage.publish(name="late")


@fault("deletion")
async def deleted_topic(stage: Stage) -> None:
    """Queues or streams of a group, then its topic, deleted under members and publishers, who go on when it is there.

    The first time they make it anew themselves, the second time another program declares it.
    """
    members = await stage.members(2)
    await stage.publish()
    await stage.published(1 / 8)
    for member in members:
        await stage.busy(member)
    # On Redis a stream is there again with the next message or read: there is nothing to tell.
    told = stage.ground.name != "redis"
    await stage.lose("queues", members, declared=False, told=told)
    await stage.lose("topics", members, declared=True, told=told)
    for member in members:
        await stage.busy(member, 50)  # of what was confirmed from now on, all is there


# --- the network -------------------------------------------------------------------------------------------------


@fault("network", short=("sqs",))
async def cut_connections(stage: Stage) -> None:
    """All TCP connections of a member and of the publishers cut for 5 s."""
    proxy = await stage.arena.proxied()
    (member,) = await stage.members(1, url=stage.arena.through(proxy))
    await stage.arena.start("member-2")
    await stage.publish(url=stage.arena.through(proxy), at_once=AT_ONCE)
    await stage.published(1 / 3)
    await stage.busy(member)
    await stage.cut(proxy, member)


@fault("network")
async def closed_connections(stage: Stage) -> None:
    """All connections closed at once, six times: in turn in an orderly way, as by a server, and by a reset.

    Health need not tell: new connections work at once.
    """
    proxy = await stage.arena.proxied()
    (member,) = await stage.members(1, url=stage.arena.through(proxy))
    await stage.publish(url=stage.arena.through(proxy))
    for turn, share in enumerate((0.2, 0.3, 0.4, 0.5, 0.6, 0.7)):
        await stage.published(share)
        since = now()
        await proxy.close_connections(orderly=turn % 2 == 0)
        stage.arena.struck("closed", since, member)


@fault("closing")
async def closed_by_the_broker(stage: Stage) -> None:
    """All connections ended by the broker's own command, three times.

    Health need not tell: the connections are there again within a second.
    """
    members = await stage.members(2)
    await stage.publish()
    for share in (0.2, 0.4, 0.6):
        await stage.published(share)
        await stage.busy(members[0])
        since = now()
        await asyncio.to_thread(stage.ground.close_connections)
        stage.arena.struck("closed", since)


@fault("network")
async def black_hole(stage: Stage) -> None:
    """Packets of a member and of the publishers vanish, in both directions, for 5 s and longer than the lease."""
    await _black_hole(stage, max(OUTAGE, 1.5 * stage.lease))


@fault("network")
async def long_black_hole(stage: Stage) -> None:
    """The same for 30 s: longer than any lease or heartbeat, and than a publisher waits."""
    await _black_hole(stage, 30.0)


@fault("network")
async def slow_network(stage: Stage) -> None:
    """200 ms more on every way to the broker and back: no fault, so no duplicates."""
    proxy = await stage.arena.proxied()
    await stage.members(2, url=stage.arena.through(proxy))
    await stage.publish(url=stage.arena.through(proxy))
    await stage.published(1 / 4)
    proxy.delay(0.2)
    await stage.published(3 / 4)
    proxy.heal()


@fault("network")
async def dripping_network(stage: Stage) -> None:
    """2 kB/s for each connection and direction of a member, for 5 s.

    Health need not tell: something gets through, and what a member asks of its broker is small enough.
    """
    proxy = await stage.arena.proxied()
    (member,) = await stage.members(1, url=stage.arena.through(proxy))
    await stage.arena.start("member-2")
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(member)
    since = now()
    proxy.drip(20, 0.01)
    await asyncio.sleep(OUTAGE)
    proxy.heal()
    stage.arena.struck("drip", since, member)


async def _full(stage: Stage, of: Resource) -> None:
    """Who publishes has to tell of it: a member may go on with what is there."""
    await stage.members(2)
    publishers = await stage.publish()
    await stage.published(1 / 3)
    since = now()
    async with stage.out_of(of):
        await asyncio.sleep(OUTAGE)
    stage.arena.struck(f"out of {of}", since, told_by=publishers)


async def _black_hole(stage: Stage, seconds: float) -> None:
    proxy = await stage.arena.proxied()
    (member,) = await stage.members(1, url=stage.arena.through(proxy))
    await stage.arena.start("member-2")
    await stage.publish(url=stage.arena.through(proxy), at_once=AT_ONCE)
    await stage.published(1 / 3)
    await stage.busy(member)
    since = now()
    proxy.black_hole()
    await asyncio.sleep(seconds)
    proxy.heal()
    stage.arena.struck("black hole", since, member, told_by=stage.behind(proxy))
