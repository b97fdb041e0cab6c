"""Faults in pairs: of the kinds member, handler, broker and network each with each other."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from messaging_contracts.faults.history import now
from messaging_contracts.faults.scenarios import SPECIAL, fault
from messaging_contracts.faults.stage import AT_ONCE, OUTAGE

if TYPE_CHECKING:
    from messaging_contracts.faults.stage import Stage


@fault("restart", "processes")
async def killed_broker_and_killed_member(stage: Stage) -> None:
    """Pair: the broker killed, and a member while it is away."""
    url = await stage.way()
    first, _ = await stage.members(2, url=url)
    await stage.publish(url=url)
    await stage.published(1 / 3)
    await stage.busy(first)
    restarting = asyncio.create_task(stage.restart_broker(kill=True))
    await stage.arena.kill(first)
    await restarting
    await stage.arena.again(first, "member-3")


@fault("restart")
async def killed_broker_and_failing_handler(stage: Stage) -> None:
    """Pair: the broker killed, and every fifth message to be retried."""
    url = await stage.way()
    await stage.members(2, url=url, failing=5)
    await stage.publish(url=url)
    for share in (1 / 3, 1 / 2):
        await stage.published(share)
        await stage.restart_broker(kill=True)


@fault("restart")
async def killed_broker_and_rejecting_handler(stage: Stage) -> None:
    """Pair: the broker killed three times, and every second message rejected: each of these is to be a dead letter."""
    url = await stage.way()
    await stage.members(2, url=url, failing=2, attempts=1)
    await stage.publish(url=url)
    for share in (1 / 4, 1 / 2, 3 / 4):
        await stage.published(share)
        await stage.restart_broker(kill=True)


@fault("restart", "data", "network")
async def killed_broker_and_slow_network(stage: Stage) -> None:
    """Pair: the broker killed while every way to it takes 200 ms more."""
    proxy = await stage.arena.proxied()
    url = stage.arena.through(proxy)
    await stage.members(2, url=url)
    await stage.publish(url=url)
    await stage.published(1 / 4)
    proxy.delay(0.2)
    await stage.published(1 / 3)
    await stage.restart_broker(kill=True)
    await stage.published(1 / 2)
    proxy.heal()


@fault("restart", "network", "once")
async def killed_broker_and_lost_answers(stage: Stage) -> None:
    """Pair: `idempotent_publish`, the broker killed, and its answers lost three times: one copy of each arrives.

    Only publishers are hit, so nothing excuses a second copy: nobody consumes yet when the broker is killed. Health
    need not tell of the lost answers: it waits for its own about as long.
    """
    proxy = await stage.proxied()
    (publisher,) = await stage.publish(url=stage.arena.through(proxy), once=True, at_once=AT_ONCE)
    await stage.published(1 / 8)
    await stage.well(publisher)
    await stage.restart_broker(kill=True, only=publisher)
    await stage.members(2)
    for share in (1 / 4, 1 / 2, 3 / 4):
        await stage.published(share)
        since = now()
        proxy.lose_answers()
        await asyncio.sleep(1)
        await proxy.close_connections()
        proxy.heal()
        stage.arena.struck("answers lost", since, publisher)


@fault("processes")
async def killed_member_and_failing_handler(stage: Stage) -> None:
    """Pair: a member killed, and every fifth message to be retried."""
    first, _ = await stage.members(2, failing=5)
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(first)
    await stage.arena.kill(first)
    await stage.arena.again(first, "member-3")


@fault("network", "processes")
async def slow_network_and_killed_member(stage: Stage) -> None:
    """Pair: 200 ms more on every way, and a member killed."""
    proxy = await stage.arena.proxied()
    first, _ = await stage.members(2, url=stage.arena.through(proxy))
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(first)
    proxy.delay(0.2)
    await stage.published(1 / 2)
    await stage.arena.kill(first)
    await stage.arena.again(first, "member-3")
    await stage.published(3 / 4)
    proxy.heal()


@fault("network")
async def cut_connections_and_failing_handler(stage: Stage) -> None:
    """Pair: a member's connections cut twice, and every fifth message to be retried."""
    proxy = await stage.arena.proxied()
    (member,) = await stage.members(1, url=stage.arena.through(proxy), failing=5)
    await stage.arena.start("member-2", failing=5)
    await stage.publish()
    for share in (1 / 4, 1 / 2):
        await stage.published(share)
        await stage.busy(member)
        await stage.cut(proxy, member, 1)


@fault("network")
async def closed_connections_and_members_come_and_go(stage: Stage) -> None:
    """Pair: members joining and leaving every second, and their connections closed."""
    proxy = await stage.arena.proxied()
    url = stage.arena.through(proxy)
    present = await stage.members(2, url=url)
    await stage.publish()
    for number in range(3, 7):
        await asyncio.sleep(1)
        present.append(await stage.arena.start(f"member-{number}", url=url))
        since = now()
        await proxy.close_connections()
        for member in present:
            stage.arena.struck("closed", since, member)
        await stage.arena.leave(present.pop(0))


@fault("processes", "network")
async def frozen_member_and_cut_connections(stage: Stage) -> None:
    """Pair: a member frozen beyond its lease, and the other's connections cut meanwhile."""
    proxy = await stage.arena.proxied()
    frozen = await stage.arena.start("member-1")
    other = await stage.arena.start("member-2", url=stage.arena.through(proxy))
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(frozen)
    await stage.busy(other)
    since = now()
    frozen.signal(signal.SIGSTOP)
    await asyncio.sleep(stage.lease / 3)
    await stage.cut(proxy, other, OUTAGE / 2)
    await asyncio.sleep(stage.lease)
    frozen.signal(signal.SIGCONT)
    stage.arena.struck("frozen", since, frozen)


@fault("network")
async def slow_handler_and_closed_connections(stage: Stage) -> None:
    """Pair: a handler that takes longer than the lease, and its connections closed."""
    proxy = await stage.arena.proxied()
    (member,) = await stage.members(
        1, url=stage.arena.through(proxy), quirk="slow", special=SPECIAL, quirk_seconds=1.5 * stage.lease
    )
    await stage.publish()
    await stage.published(1 / 2)
    since = now()
    await proxy.close_connections()
    stage.arena.struck("closed", since, member)


@fault("processes", "deletion")
async def killed_member_and_deleted_topic(stage: Stage) -> None:
    """Pair: a member killed, and what its group reads deleted while its partitions move."""
    first, second = await stage.members(2, failing=5)
    await stage.publish()
    await stage.published(1 / 8)
    for member in (first, second):
        await stage.busy(member)
    # On Redis a stream is there again with the next message or read: there is nothing to tell.
    await stage.arena.kill(first)
    third = await stage.arena.again(first, "member-3")
    await stage.lose("queues", [second, third], declared=False, told=stage.ground.name != "redis")
    await stage.busy(third, 30)
