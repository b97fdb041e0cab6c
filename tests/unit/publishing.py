import asyncio

from messaging import exchanges
from messaging.errors import PublishError
from messaging.message import Receipt
from messaging.publish import Publisher
from messaging.refusals import Refusals
from messaging.testing import VirtualClock
from tests.unit.scripted import ScriptedAdapter


def requesting(**says):
    """The class of an adapter that says this of itself."""
    return type("Requesting", (ScriptedAdapter,), says)


def nothing_is_left(publisher):
    """No call, nothing under way, and no more topics of their own than are kept."""
    return not (
        publisher._waiting
        or publisher._outstanding
        or len(publisher._topics) > publisher._kept
        or publisher._failed
        or any(
            one._free or one._ordered or one._busy or one.tasks or one.outstanding or one.queued
            for one in publisher._all
        )
    )


def one_at_a_time(monkeypatch):
    """One exchange at once, also beside one that is slow."""
    monkeypatch.setattr(exchanges, "EXCHANGES", 1)
    monkeypatch.setattr(exchanges.Exchanges, "_slow_apart", 0)


class Desk:
    """A publisher over a broker that answers when the gate is open."""

    def __init__(self, **says):
        self.clock = VirtualClock()
        self.adapter = requesting(**says)(self.clock)
        self.adapter.on_publish = self.answer
        self.refusals = Refusals("scripted", self.clock)
        self.publisher = Publisher(self.adapter, self.clock, self.refusals)
        self.gate = asyncio.Event()
        self.answers = {}
        self.under_way = 0

    @property
    def batches(self):
        return self.adapter.batches

    async def answer(self, messages):
        self.under_way += 1
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
            self.clock.touch()
        found = [self.answers.get(one.message.id, Receipt(one.message.id)) for one in messages]
        for one in found:
            if not isinstance(one, PublishError | Receipt):
                raise one
        return found

    def start(self, *messages, within=None):
        return asyncio.create_task(self.publisher.publish(messages, within))

    async def started(self, *messages, within=None):
        task = self.start(*messages, within=within)
        await self.clock.settle()
        return task

    @property
    def exchanges(self):
        """Of the ordered topics, and of the others."""
        return self.publisher._all

    @property
    def tasks(self):
        return [task for one in self.exchanges for task in one.tasks]

    @property
    def waiting(self):
        """What waits for an exchange: calls without order, and ordered messages."""
        return sum(len(one._free) + sum(map(len, one._ordered.values())) for one in self.exchanges)

    def nothing_is_left(self):
        return nothing_is_left(self.publisher)
