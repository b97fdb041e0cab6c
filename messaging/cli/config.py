"""`messaging config`: every setting in force and where it comes from, secrets redacted."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from messaging.bus import connect
from messaging.cli.program import load_app
from messaging.settings import Settings
from messaging.sources import CODE, dotted

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )
    from collections.abc import Iterable, Mapping

    from messaging.app import App
    from messaging.bus import Bus
    from messaging.subscription import Plan


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("config", help="show the effective settings and where each comes from")
    parser.add_argument(
        "app", nargs="?", metavar="APP", help="module:app, to show its topics and subscriptions too"
    )
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> None:
    """Print them. No connection is made."""
    settings = Settings.load()
    effective = settings.effective()
    _table((key, _written(value), origin) for key, (value, origin) in effective.items())
    if arguments.app is not None:
        app = load_app(arguments.app)
        # What is planned depends on no broker: where none is set, memory stands in for it.
        bus = connect(settings if settings.url else settings.model_copy(update={"url": "memory://"}))
        print()
        _table(_app_rows(app, bus, settings.origins()))
        if settings.routes:
            print()
            _table(_route_rows(app, bus, settings.origins()))
        for name in _of_no_subscription(app, settings):
            print(
                f"note: {name} is of nothing in {arguments.app}: of another program, or misspelt",
                file=sys.stderr,
            )


def _of_no_subscription(app: App, settings: Settings) -> Iterable[str]:
    """What the settings name and the app has not: one file may be for several programs."""
    topics = {definition.topic.name for definition in app.definitions}
    names = {definition.name for definition in app.definitions}
    yield from (dotted(("topics", name)) for name in settings.topics if name not in topics)
    yield from (dotted(("subscriptions", name)) for name in settings.subscriptions if name not in names)


def _route_rows(app: App, bus: Bus, origins: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """On which broker each topic lives, and which setting says so."""
    for topic in sorted({definition.topic.name for definition in app.definitions}):
        pattern = bus.routing.pattern(topic)
        key = "url" if pattern is None else dotted(("routes", pattern))
        yield f"{topic} ->", bus.broker(topic).name, f"{key}, {origins.get(key, CODE)}"


def _app_rows(app: App, bus: Bus, origins: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    topics: set[str] = set()
    for plan in app.plans(bus):
        topic = plan.group.topic
        name = plan.definition.name
        rows: list[tuple[tuple[str, ...], Any]] = []
        if topic.name not in topics:
            topics.add(topic.name)
            keys = ("ordered", "partitions", "retention", "native")
            rows += [(("topics", topic.name, key), getattr(topic, key)) for key in keys]
        rows += [(("subscriptions", name, *path), value) for path, value in _planned(plan)]
        for path, value in rows:
            origin = origins.get(dotted(path))
            if origin is None and path[0] == "subscriptions":
                origin = _inherited(plan, path[2:], origins)
            yield dotted(path), _written(value), origin or CODE


def _inherited(plan: Plan, path: tuple[str, ...], origins: Mapping[str, str]) -> str:
    """The origin of what the subscription's settings do not say: its own code, else `[app]`, else the app's code."""
    nearer = getattr(plan.definition, path[0]) is not None
    return CODE if nearer else origins.get(dotted(("app", *path)), CODE)


def _planned(plan: Plan) -> Iterable[tuple[tuple[str, ...], Any]]:
    yield ("concurrency",), plan.concurrency
    yield ("prefetch",), plan.prefetch
    yield ("ordered",), plan.group.ordered
    yield ("timeout",), plan.timeout
    yield ("idempotent",), bool(plan.idempotent)
    yield ("start",), plan.group.start
    yield ("on_expired",), plan.on_expired
    yield ("on_exhausted",), plan.on_exhausted
    yield ("native",), plan.group.native
    yield ("retry", "attempts"), plan.retry.attempts
    yield ("retry", "delay"), plan.retry.delay.initial
    yield ("retry", "multiplier"), plan.retry.delay.multiplier
    yield ("retry", "maximum"), plan.retry.delay.maximum
    yield ("retry", "jitter"), plan.retry.delay.jitter


def _written(value: Any) -> str:
    """The value as TOML would have it, where TOML has it."""
    return "(not set)" if value is None else json.dumps(value, default=str)


def _table(rows: Iterable[tuple[str, str, str]]) -> None:
    lines = list(rows)
    widths = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    for key, value, origin in lines:
        print(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
