"""The topics that tests of a bus publish to, and what a group gets of them."""

import asyncio

from messaging import Ack, Endpoint, Topic

orders = Topic("orders", str, key=lambda payload: payload[0], ordered=True)
jobs = Topic("jobs", str)
prices = Endpoint("prices", str, int)


async def bodies(bus, clock, topic=jobs):
    """What the group `audit` gets now, in order."""
    found = []
    async with bus.consume(topic, group="audit", prefetch=1000) as pull:
        while True:
            task = asyncio.create_task(anext(pull))
            await clock.settle()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
                return found
            found.append(task.result().message.body)
            await pull.settle(task.result(), Ack())
