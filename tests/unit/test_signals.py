"""How a program that is asked to stop does."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from typing import Any

import pytest

from messaging import App, Closed, ConfigurationError, connect
from tests.unit.topics import jobs


async def test_serve_drains_at_a_signal():
    app, handled = App("a"), []

    @app.subscribe(jobs)
    async def handle(job: str):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        handled.append(job)

    bus = connect("memory://")
    serving = asyncio.create_task(app.serve(bus))
    while not bus.dispatchers:
        await asyncio.sleep(0)
    await bus.publish(jobs, "x")
    await serving

    assert handled == ["x"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def send(number):
    """Until the loop has taken it: reading its pipe is one turn, calling who is told another."""
    os.kill(os.getpid(), number)
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_signal_that_is_sent_twice_at_once_drains():
    app, handled, started = App("a"), [], asyncio.Event()

    @app.subscribe(jobs)
    async def handle(job: str):
        started.set()
        await release.wait()
        handled.append(job)

    release, bus = asyncio.Event(), connect("memory://")
    serving = asyncio.create_task(app.serve(bus))
    while not bus.dispatchers:
        await asyncio.sleep(0)
    await bus.publish(jobs, "x")
    await started.wait()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        await send(number)

    release.set()
    await serving

    assert handled == ["x"]


async def test_an_app_that_is_served_while_others_drain_is_asked_too():
    first = await Starting(asyncio.Event().wait).serve()
    await send(signal.SIGTERM)
    second = await Starting().serve()

    os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(10):
        await second
    first.cancel()
    await asyncio.wait({first})


async def two_served_apps():
    buses = [connect("memory://"), connect("memory://")]
    apps = [App("a"), App("b")]
    for app in apps:
        app.subscribe(jobs)(lambda job: None)
    serving = [asyncio.create_task(app.serve(bus)) for app, bus in zip(apps, buses, strict=True)]
    while not all(bus.dispatchers for bus in buses):
        await asyncio.sleep(0)
    return serving


async def test_a_signal_stops_all_apps_that_one_loop_serves():
    serving = await two_served_apps()

    os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(10):
        await asyncio.gather(*serving)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_one_app_that_ends_leaves_the_signals_to_the_others():
    serving = await two_served_apps()

    serving[1].cancel()
    await asyncio.wait({serving[1]})
    os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(10):
        await serving[0]


class Starting:
    """An app whose lifespan begins, and waits for a database that is away."""

    def __init__(self, closing=lambda: asyncio.sleep(0)):
        self.began, self.closed = asyncio.Event(), False
        self.bus = connect("memory://")

        @asynccontextmanager
        async def lifespan(bus):
            try:
                self.began.set()
                await asyncio.Event().wait()
                yield
            finally:
                await closing()
                self.closed = True

        self.app = App("a", lifespan=lifespan)

    async def serve(self):
        serving = asyncio.create_task(self.app.serve(self.bus))
        await self.began.wait()
        return serving


async def test_a_signal_cancels_a_start_and_closes_what_was_opened():
    starting = Starting()
    serving = await starting.serve()

    os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(10):
        await serving
    assert starting.closed
    with pytest.raises(Closed):
        await starting.bus.publish(jobs, "x")


async def ask_to_stop():
    """Until the signal was taken: the next one would end this process."""
    os.kill(os.getpid(), signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        await asyncio.sleep(0)


async def test_a_second_signal_ends_a_process_whose_start_does_not_end():
    release = asyncio.Event()
    serving = await Starting(release.wait).serve()

    await ask_to_stop()

    assert not serving.done()
    release.set()
    await serving


async def test_a_start_that_another_part_of_the_program_cancels_stays_cancelled():
    release = asyncio.Event()
    serving = await Starting(release.wait).serve()

    await ask_to_stop()
    serving.cancel()
    release.set()

    await asyncio.wait({serving})
    assert serving.cancelled()


async def test_serve_says_where_it_cannot_be_used():
    app: Any = App("a")

    with pytest.raises(ConfigurationError, match=r"serve\(\) takes a Bus: .*, not 'memory://'"):
        await app.serve("memory://")
    with pytest.raises(ConfigurationError, match=r"running\(\) takes a Bus: .*, not 'memory://'"):
        async with app.running("memory://"):
            pass
    with pytest.raises(ConfigurationError, match="only the main thread gets"):
        await asyncio.to_thread(asyncio.run, app.serve(connect("memory://")))
