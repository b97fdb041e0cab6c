"""The broker that a case is run on, and what every case needs: buses, topics, members, an end that cleans up."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from messaging import App, Bus, Delivery, Endpoint, Outcome, Settings, Topic
from messaging.clock import SystemClock
from messaging.partition import partition_of
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.member import Part
from messaging_contracts.processes import Member, MemberProcess, MemberTask
from messaging_contracts.standstill import standstill

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from typing_extensions import TypeForm

    from messaging import Capabilities, DeadLetter, Health
    from messaging.adapter import Adapter
    from messaging_contracts.foreign import ForeignPublisher
    from messaging_contracts.standstill import Standstill

    Behaviour: TypeAlias = Callable[[Delivery[Any]], Awaitable[Outcome | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the author of an adapter tells about a broker that the suite may use."""

    url: str
    short_lease_url: str
    """The same broker with a lease of about a second, where it has leases; else the same URL."""
    store: str | None = None
    """Where idempotency lives: a store that all members of a group share."""
    foreign: ForeignPublisher | None = None
    crash: Callable[[Bus], None] | None = None
    """Only for a broker that lives in the process of its members: make this bus die as kill -9 would."""


@dataclass(slots=True)
class BrokerUnderTest:
    """One broker, for one case. Names are unique for the case and carry the case's name."""

    target: Target
    case: str
    bus: Bus = field(init=False)
    """An open bus: the first member, or the publisher."""
    _used: list[tuple[Topic[Any], str]] = field(default_factory=list[tuple[Topic[Any], str]])

    @property
    def capabilities(self) -> Capabilities:
        return self.bus.capabilities

    def topic(
        self, label: str = "", type: TypeForm[Any] = Any, *, partitions: int = 2, **options: Any
    ) -> Topic[Any]:
        """A topic of this case alone, with few partitions, so that brokers stay quick."""
        return Topic(self._name(label), type, partitions=partitions, **options)

    def endpoint(self, label: str, request: TypeForm[Any], reply: TypeForm[Any]) -> Endpoint[Any, Any]:
        """An endpoint of this case alone."""
        endpoint = Endpoint(self._name(label), request, reply)
        self.uses(endpoint.topic, "responders")
        return endpoint

    def uses(self, topic: Topic[Any], *groups: str) -> None:
        """These groups are deleted when the case ends."""
        self._used += [(topic, group) for group in groups]

    def app(
        self,
        topic: Topic[Any],
        ledger: Ledger,
        *,
        group: str = "billing",
        member: str = "",
        then: Behaviour | None = None,
        **options: Any,
    ) -> App:
        """A member of a group that records every handling and then does what `then` says; `None` is an Ack."""
        app = App(group)
        self.uses(topic, group)

        @app.subscribe(topic, **options)
        async def handle(_: Any, delivery: Delivery[Any]) -> Outcome | None:
            with ledger.handling(delivery, member):
                return None if then is None else await then(delivery)

        return app

    @asynccontextmanager
    async def another_bus(
        self,
        *,
        short_lease: bool = False,
        grace: float = 30.0,
        wrap: Callable[[Adapter], Adapter] | None = None,
        **settings: Any,
    ) -> AsyncGenerator[Bus]:
        """Another open bus on the same broker: a second member, as another process would have.

        `grace` is for how many seconds handlers may go on at the end; `wrap` stands between the bus and its adapter.
        """
        url = self.target.short_lease_url if short_lease else self.target.url
        made = Settings(url=url, store=self.target.store, drain_timeout=grace, **settings)
        async with Bus(made, clock=SystemClock(), wrap=wrap) as bus:
            yield bus

    @asynccontextmanager
    async def running(
        self, *apps: App, short_lease: bool = False, grace: float = 30.0
    ) -> AsyncGenerator[Sequence[Bus]]:
        """Each app runs on a bus of its own."""
        async with AsyncExitStack() as stack:
            buses = [
                await stack.enter_async_context(self.another_bus(short_lease=short_lease, grace=grace))
                for _ in apps
            ]
            for app, bus in zip(apps, buses, strict=True):
                await stack.enter_async_context(app.running(bus))
            yield buses

    def process(
        self,
        ledger: Ledger,
        topic: Topic[Any],
        group: str = "billing",
        *,
        member: str = "process",
        **part: Any,
    ) -> Member:
        """A member with a short lease that can be killed; `part` is what `messaging_contracts.member.Part` holds."""
        self.uses(topic, group)
        url = self.target.short_lease_url
        plays = Part(
            topic=topic.name, group=group, partitions=topic.partitions, ordered=topic.ordered, **part
        )
        if self.target.crash is not None:
            return MemberTask(ledger, url, plays, member, self.target.crash)
        return MemberProcess(ledger, url, plays, member)

    async def letters(
        self, topic: Topic[Any], group: str = "billing", *, count: int = 0
    ) -> Sequence[DeadLetter]:
        """The dead letters of a group, as soon as there are at least `count`."""
        dead = self.bus.dead_letters(topic, group=group)

        async def enough() -> bool:
            return await dead.count() >= count

        await self.eventually(enough, f"{count} dead letters")
        return [letter async for letter in dead.browse()]

    async def eventually(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait for a condition that only the broker can tell: asked again and again until a deadline."""
        within = Patience.seconds
        try:
            async with asyncio.timeout(within):
                while not await condition():  # noqa: ASYNC110  the broker sends no event for it
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {within:g} s: {what}") from None

    async def health(self, bus: Bus, status: str) -> Health:
        """The health of a bus as soon as it has this status: a probe may find the broker standing still."""
        found: list[Health] = []

        async def has_status() -> bool:
            found[:] = [await bus.health()]
            return found[0].status == status

        try:
            await self.eventually(has_status, f"health is {status}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None
        return found[0]

    def standstill(
        self, topic: Topic[Any], group: str = "billing"
    ) -> AbstractAsyncContextManager[Standstill]:
        """For how long nothing went on while the block ran: what is judged to be late may be as late."""
        return standstill(self.bus.dead_letters(topic, group=group).count)

    async def nothing_left(self, topic: Topic[Any], group: str = "billing") -> None:
        """The group has nothing more to be handed out: a new member sees only sentinels, one per partition."""
        ledger = Ledger()
        async with self.running(self.app(topic, ledger, group=group)) as (bus,):
            receipts = [
                await bus.publish(topic, "sentinel", key=key if topic.ordered else None)
                for key in one_key_per_partition(topic.partitions)
            ]
            await ledger.handled(len(receipts))
        ledger.assert_each_once([receipt.id for receipt in receipts])

    async def clean(self) -> None:
        """Delete the groups that the case has used."""
        used: dict[tuple[str, str], Topic[Any]] = {}
        for topic, group in self._used:
            used.setdefault(
                (topic.name, group), topic
            )  # it may have been described in several ways, one after another
        for (_, group), topic in used.items():
            await self.bus.delete_group(topic, group=group)

    def _name(self, label: str) -> str:
        return ".".join(filter(None, (self.case, label, secrets.token_hex(4))))


def one_key_per_partition(partitions: int) -> Sequence[str]:
    """Keys that together reach every partition."""
    keys: dict[int, str] = {}
    number = 0
    while len(keys) < partitions:
        keys.setdefault(partition_of(f"key-{number}", partitions), f"key-{number}")
        number += 1
    return [keys[partition] for partition in range(partitions)]
