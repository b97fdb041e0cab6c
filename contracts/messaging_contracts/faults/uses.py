"""Faults under what else programs do than publish and handle: delays, requests, redrives, idempotent groups."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from messaging_contracts.faults.history import now
from messaging_contracts.faults.proxy import LOOPBACK, Proxy
from messaging_contracts.faults.redriving import PAGE
from messaging_contracts.faults.scenarios import fault
from messaging_contracts.faults.stage import OUTAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from messaging_contracts.faults.processes import Process
    from messaging_contracts.faults.stage import Stage

REJECTING: Mapping[str, Any] = {"failing": 2, "attempts": 1}
"""Of members that make a dead letter of every second message until SIGUSR2."""
DELAY = 8.0
"""Seconds by which messages are delayed at most: some are due before the broker is away, some meanwhile, some after."""


@fault("restart")
async def restarted_broker_and_delays(stage: Stage) -> None:
    """Messages published with delays of 2 to 8 s, the broker restarted and then killed: none early, none lost."""
    url = await stage.way()
    await stage.members(2, url=url)
    await stage.publish(url=url, delay=DELAY)
    await stage.published(1 / 4)
    await stage.restart_broker(kill=False)
    await stage.published(1 / 2)
    await stage.restart_broker(kill=True)


@fault("restart")
async def killed_broker_and_requests(stage: Stage) -> None:
    """Requests, the broker killed twice meanwhile: each gets its own reply, or a clear error in time."""
    url = await stage.way()
    await stage.members(2, url=url, respond=True)
    await stage.publish(url=url)
    for number in (1, 2):
        await stage.ask(url=url, name=f"requester-{number}")
    for share in (1 / 3, 1 / 2):
        await stage.published(share)
        await stage.restart_broker(kill=True)
        await stage.answered()


@fault("network")
async def cut_connections_and_requests(stage: Stage) -> None:
    """Requests, and all connections of a responder and of a requester cut for 5 s: each ends as it should."""
    proxy = await stage.arena.proxied()
    url = stage.arena.through(proxy)
    (member,) = await stage.members(1, url=url, respond=True)
    await stage.arena.start("member-2", respond=True)
    await stage.publish()
    await stage.ask(url=url, name="requester-1")
    await stage.ask(name="requester-2")
    await stage.published(1 / 3)
    await stage.busy(member)
    await stage.cut(proxy, member)
    await stage.answered()


@fault("network")
async def cut_connections_and_redrive(stage: Stage) -> None:
    """Dead letters redriven under load, and the connections of who does it and of a member cut for 5 s meanwhile."""
    proxy = await stage.arena.proxied()
    url = stage.arena.through(proxy)
    (member,) = await stage.members(1, url=url, **REJECTING)
    other = await stage.arena.start("member-2", **REJECTING)
    await _redrive(stage, [member, other], url)
    await stage.cut(proxy, member)
    await stage.redriven()


@fault("restart")
async def killed_broker_and_redrive(stage: Stage) -> None:
    """Dead letters redriven under load, the broker killed twice meanwhile: each is handled, or still a letter."""
    url = await stage.way()
    members = await stage.members(2, url=url, **REJECTING)
    await _redrive(stage, members, url)
    await stage.restart_broker(kill=True)
    await stage.redriving(PAGE)
    await stage.restart_broker(kill=True)
    await stage.redriven()


@fault("processes", "network")
async def killed_member_of_an_idempotent_group(stage: Stage) -> None:
    """A member of an idempotent group killed: nothing is handled again but what it did not live to store as done."""
    store = await stage.store()
    first, _ = await stage.members(2, store=store, work=0.05)
    await stage.publish()
    await stage.published(1 / 4)
    await stage.busy(first)
    await stage.arena.kill(first)
    await stage.arena.again(first, "member-3")


@fault("network")
async def cut_connections_of_an_idempotent_group(stage: Stage) -> None:
    """A member of an idempotent group and publishers: no answers for 1 s, then all is cut, the store too, for 5 s.

    What was published, handled or stored without its answer comes again, and is not handled again.
    """
    proxy = await stage.arena.proxied()
    url = stage.arena.through(proxy)
    store = await stage.store()
    parts = urlsplit(store)
    assert parts.hostname is not None and parts.port is not None, "a Redis of our own has both"
    beside = await stage.arena.entered(Proxy(parts.hostname, parts.port))
    near = parts._replace(netloc=f"{LOOPBACK}:{beside.port}").geturl()
    (member,) = await stage.members(1, url=url, store=near)
    await stage.arena.start("member-2", store=store)
    await stage.publish(url=url)
    await stage.published(1 / 3)
    await stage.busy(member)
    since = now()
    for way in (proxy, beside):
        way.lose_answers()
    await asyncio.sleep(1)
    await asyncio.gather(proxy.cut(), beside.cut())
    await asyncio.sleep(OUTAGE)
    for way in (proxy, beside):
        way.heal()
    stage.arena.struck("cut", since, member, told_by=stage.behind(proxy))


async def _redrive(stage: Stage, members: Sequence[Process], url: str | None) -> None:
    """Let half of what is published become dead letters, and then redrive them while other messages are published."""
    await stage.publish()
    await stage.all_done()
    await stage.arena.lettered(stage.scale.patience)
    for member in members:
        member.signal(signal.SIGUSR2)
    await stage.publish(name="late", url=url)
    await stage.redrive(url=url)
    await stage.redriving(PAGE)
