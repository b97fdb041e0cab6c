import asyncio

from messaging.errors import PublishError
from messaging.message import Receipt
from messaging.publish import Publisher
from messaging.refusals import Refusals
from messaging.testing import VirtualClock
from tests.unit.scripted import ScriptedAdapter


class Desk:
    """A publisher over a broker that answers when the gate is open."""

    def __init__(self):
        self.clock = VirtualClock()
        self.adapter = ScriptedAdapter(self.clock)
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

    def nothing_is_left(self):
        publisher = self.publisher
        return not (
            publisher._free
            or publisher._ordered
            or publisher._busy
            or publisher._exchanges
            or publisher._outstanding
            or publisher._waiting
        )
