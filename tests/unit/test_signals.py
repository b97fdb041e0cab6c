"""How a program that is asked to stop does."""

import asyncio
import os
import signal
from typing import Any

import pytest

from messaging import App, ConfigurationError, connect
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


async def test_serve_says_where_it_cannot_be_used():
    app: Any = App("a")

    with pytest.raises(ConfigurationError, match=r"serve\(\) takes a Bus: .*, not 'memory://'"):
        await app.serve("memory://")
    with pytest.raises(ConfigurationError, match=r"running\(\) takes a Bus: .*, not 'memory://'"):
        async with app.running("memory://"):
            pass
    with pytest.raises(ConfigurationError, match="only the main thread gets"):
        await asyncio.to_thread(asyncio.run, app.serve(connect("memory://")))
