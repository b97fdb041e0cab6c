"""A consumer and an adapter whose every answer a test decides, and a dispatcher between them on a virtual clock."""

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import Any

from messaging.adapter import (
    DONE,
    SUSPECT_AFTER,
    Adapter,
    BrokerHealth,
    Capabilities,
    Capability,
    Consumer,
    ConsumerStatus,
    GroupSpec,
    Hold,
    Outgoing,
    RawDelivery,
    Subscription,
    TopicSpec,
)
from messaging.binding import Binding
from messaging.clock import sleep
from messaging.codec import Codec
from messaging.dispatch import Dispatcher
from messaging.message import Ack, Message, Receipt, Retry
from messaging.testing import VirtualClock

NATIVE = Capability("native")


def message(id="m", key=None, body=b"{}", **values):
    return Message(
        id=id, topic="orders", body=body, key=key, content_type=values.pop("content_type", None), **values
    )


def raw(id="m", key=None, **values):
    body = values.pop("body", b'"x"')
    return RawDelivery(message(id, key, body, content_type="application/json"), **values)


def suspect(id, **values):
    return raw(id, returns=SUSPECT_AFTER, **values)


def outgoing(id="m", key=None, *, ordered=False, partition=0, topic="orders"):
    return Outgoing(
        TopicSpec(topic, ordered=ordered), Message(id=id, topic=topic, body=b"", key=key), partition
    )


def ids(deliveries):
    return [delivery.message.id for delivery in deliveries]


class ScriptedConsumer(Consumer):
    """Hands over what a test puts in; `settle`, `extend` and `isolate` do what the test's functions say."""

    def __init__(self, clock, ownership: Any = None, *, lease=None, window=1000):
        self.clock = clock
        self.ownership = ownership
        self.lease = lease
        self.window = window
        self.waiting = deque()
        self.arrived = asyncio.Event()
        self.asked = []
        self.settled = []
        self.extended = []
        self.isolated = []
        self.failures = deque()
        self.closed = False
        self.on_settle: Any = None
        self.on_extend: Any = None
        self.on_isolate: Any = None

    def put(self, *deliveries):
        self.waiting.extend(deliveries)
        self.arrived.set()

    def fail(self, *errors):
        """The next calls of `receive` raise these."""
        self.failures.extend(errors)
        self.arrived.set()

    async def receive(self, limit, wait, paused=()):
        self.asked.append((limit, frozenset(paused)))
        while True:
            if self.failures:
                raise self.failures.popleft()
            ready = [one for one in self.waiting if one.partition not in paused][:limit]
            if ready:
                for one in ready:
                    self.waiting.remove(one)
                await asyncio.sleep(0)
                return ready
            self.arrived.clear()
            waiter = asyncio.ensure_future(self.arrived.wait())
            timer = self.clock.call_later(wait, self.arrived.set)
            try:
                await waiter
            finally:
                timer.cancel()
                waiter.cancel()
            if not self.waiting and not self.failures:
                return []

    async def settle(self, settlements):
        if self.on_settle is not None:
            results = await self.on_settle(settlements)
        else:
            results = [self.answer(one) for one in settlements]
        self.settled += [(one.delivery.message.id, one.outcome) for one in settlements]
        self.clock.touch()
        return results

    def answer(self, settlement):
        if isinstance(settlement.outcome, Retry):
            return Hold(self.clock.monotonic() + settlement.after)
        return DONE

    def outcomes(self, kind=object):
        return [id for id, outcome in self.settled if isinstance(outcome, kind)]

    async def extend(self, deliveries, seconds):
        self.extended.append(ids(deliveries))
        if self.on_extend is not None:
            return await self.on_extend(deliveries, seconds)
        for one in deliveries:
            one.lease.deadline = self.clock.monotonic() + seconds
        return [True] * len(deliveries)

    async def isolate(self, delivery):
        self.isolated.append(delivery.message.id)
        return True if self.on_isolate is None else await self.on_isolate(delivery)

    def status(self):
        return ConsumerStatus(connected=True)

    async def close(self):
        self.closed = True


class ScriptedAdapter(Adapter):
    """Publishes what a test lets through: `on_publish` and `on_reply` answer each batch."""

    name = "scripted"

    def __init__(self, clock, consumer: Any = None):
        self.clock = clock
        self.made = consumer
        self.batches = []
        self.replies = []
        self.opened = self.closed = 0
        self.on_publish: Any = None
        self.on_reply: Any = None
        self.on_inbox: Any = None

    @classmethod
    def from_url(cls, url, context):
        raise NotImplementedError

    @property
    def capabilities(self):
        return Capabilities(
            broker="scripted",
            groups=NATIVE,
            order=NATIVE,
            delayed_retry=NATIVE,
            dead_letters=NATIVE,
            redrive=NATIVE,
            requests=NATIVE,
            history=NATIVE,
            no_group=NATIVE,
            crash_guard=NATIVE,
            idempotent_publish=NATIVE,
            max_message_bytes=100_000,
            durability="none",
            fenced=True,
        )

    @property
    def native(self):
        return self

    async def open(self):
        self.opened += 1

    async def close(self):
        self.closed += 1

    async def declare(self, topology):
        pass

    async def publish(self, messages):
        self.batches.append([one.message.id for one in messages])
        if self.on_publish is not None:
            return await self.on_publish(messages)
        return [Receipt(one.message.id, one.partition) for one in messages]

    def consumer(self, subscription, ownership):
        self.made.ownership = ownership
        return self.made

    async def reply_inbox(self):
        return await self.on_inbox()

    async def reply(self, replies):
        self.replies += replies
        return [None] * len(replies) if self.on_reply is None else await self.on_reply(replies)

    def dead_letters(self, group):
        raise NotImplementedError

    async def groups(self):
        return ()

    async def delete_group(self, group):
        pass

    async def health(self):
        return BrokerHealth(connected=True)


class Bench:
    """One running dispatcher. `handler` gets each Delivery; what it returns is the outcome."""

    def __init__(self, handler, **options):
        self.clock = VirtualClock()
        self.consumer = ScriptedConsumer(
            self.clock, lease=options.pop("lease", None), window=options.pop("window", 1000)
        )
        self.adapter = ScriptedAdapter(self.clock, self.consumer)
        group = GroupSpec(TopicSpec("orders", ordered=True), "billing", ordered=options.pop("ordered", True))
        self.binding = Binding(
            subscription=Subscription(
                group, prefetch=options.pop("prefetch", 32), concurrency=options.pop("concurrency", 4)
            ),
            codec=Codec(str),
            handler=handler,
            handler_name="handler",
            service="billing",
            grace=options.pop("grace", 30.0),
            max_delay=options.pop("max_delay", 1000.0),
            **options,
        )
        self.dispatcher = Dispatcher(self.adapter, self.binding, self.clock)
        self.running_task: asyncio.Task[None] | None = None

    @property
    def task(self):
        assert self.running_task is not None, "the bench does not run"
        return self.running_task

    @property
    def counters(self):
        return self.binding.counters

    @property
    def health(self):
        return self.dispatcher.health("scripted")

    async def put(self, *deliveries):
        self.consumer.put(*deliveries)
        await self.clock.settle()

    async def stop(self):
        """Ask it to drain; returns once it has, or the virtual clock is at rest."""
        self.dispatcher.stop()
        await self.clock.settle()

    @asynccontextmanager
    async def running(self):
        self.running_task = asyncio.create_task(self.dispatcher.run())
        await self.clock.settle()
        try:
            yield self
        finally:
            self.dispatcher.stop()
            while not self.task.done():
                await self.clock.advance(5)
        self.task.result()


class Work:
    """A handler that a test controls: each delivery waits until it is let go with an outcome."""

    def __init__(self):
        self.started = []
        self.running = set()
        self.most = 0
        self.cancelled = []
        self.gates = {}

    async def __call__(self, delivery):
        id = delivery.message.id
        self.started.append(id)
        self.running.add(id)
        self.most = max(self.most, len(self.running))
        gate = self.gates[id] = asyncio.get_running_loop().create_future()
        try:
            return await gate
        except asyncio.CancelledError:
            self.cancelled.append(id)
            raise
        finally:
            self.running.discard(id)

    def finish(self, id, outcome=None):
        self.gates[id].set_result(outcome or Ack())


async def acking(delivery):
    return Ack()


async def later(clock, seconds, value):
    await sleep(clock, seconds)
    return value
