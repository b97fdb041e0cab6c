"""`messaging dead-letters`: list, redrive or purge what a group gave up."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

from messaging.adapter import TopicSpec, Topology
from messaging.bus import connect
from messaging.cli.program import load_app, number_above_0
from messaging.errors import ConfigurationError, PublishManyError
from messaging.logs import one_line
from messaging.message import Topic

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )
    from typing import Any

    from messaging.adapter import GroupSpec
    from messaging.app import App
    from messaging.bus import Bus
    from messaging.dead_letters import DeadLetter, DeadLetters, Where


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command and its three verbs."""
    parser = commands.add_parser("dead-letters", help="list, redrive or purge the dead letters of a group")
    verbs = parser.add_subparsers(required=True)
    texts = {
        "list": "show them, oldest first; nothing is consumed",
        "redrive": "put them back to the tail of this group only",
        "purge": "delete them for good",
    }
    for verb, text in texts.items():
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("--url", help="the broker; else MESSAGING_URL or messaging.toml")
        command.add_argument("--namespace", help="else MESSAGING_NAMESPACE or messaging.toml")
        command.add_argument("--topic", required=True, help="the topic's name")
        command.add_argument("--group", required=True, help="the group's name")
        command.add_argument(
            "--app", help="module:app that describes topic and group; else the broker's record"
        )
        if verb == "list":
            command.add_argument("--limit", type=number_above_0, help="at most so many")
        else:
            which = command.add_mutually_exclusive_group(required=True)
            which.add_argument(
                "--id",
                action="append",
                dest="ids",
                help="only this message, which must be there; may be repeated",
            )
            which.add_argument("--all", action="store_true", help="all that are there now")
            command.add_argument("--dry-run", action="store_true", help="only say how many it would be")
        command.set_defaults(run=run, verb=verb)


def run(arguments: Namespace) -> None:
    """Connect, do it, say what was done. Raises whatever the bus raises."""
    asyncio.run(perform(arguments))


async def perform(arguments: Namespace) -> None:
    """The same on the running loop."""
    app = None if arguments.app is None else load_app(arguments.app)
    # Verified first: with other partitions than the broker's, a redrive would put messages where nobody looks.
    async with connect(arguments.url, namespace=arguments.namespace, topology="verify") as bus:
        topic, group = await _recorded(bus, arguments) if app is None else _described(bus, app, arguments)
        await bus.catalogue.declare([group], [group.topic])
        letters = bus.dead_letters(topic, group=group.name)
        if arguments.verb == "list":
            await _list(letters, arguments)
        elif arguments.ids is None:
            print(await _done(letters, arguments, None))
        else:
            await _do_named(letters, arguments)


async def _do_named(letters: DeadLetters, arguments: Namespace) -> None:
    """Do it to those that are there. Raises ConfigurationError for the others: a misspelt id is not nothing to do."""
    missing = dict.fromkeys(arguments.ids)

    def named(letter: DeadLetter) -> bool:
        if letter.id in arguments.ids:
            missing.pop(letter.id, None)
            return True
        return False

    def told() -> str:
        listed = ", ".join(map(repr, missing))
        return f"group {arguments.group} of topic {arguments.topic} has no dead letter {listed}"

    try:
        print(await _done(letters, arguments, named))
    except PublishManyError:  # all were tried
        if missing:
            print(one_line(told()), file=sys.stderr)
        raise
    if missing:
        raise ConfigurationError(told())


async def _done(letters: DeadLetters, arguments: Namespace, where: Where | None) -> str:
    """Redrive or purge, or only count, and what to say of it."""
    if arguments.verb == "redrive":
        number = await letters.redrive(ids=arguments.ids, where=where, dry_run=arguments.dry_run)
        return f"{'would redrive' if arguments.dry_run else 'redrove'} {number}"
    if arguments.dry_run:
        return f"would purge {await _number(letters, where)}"
    return f"purged {await letters.purge(ids=arguments.ids, where=where)}"


def _described(bus: Bus, app: App, arguments: Namespace) -> tuple[Topic[Any], GroupSpec]:
    """The topic and the group as the app describes them: its group may have given the topic's order up."""
    plans = [plan for plan in app.plans(bus) if plan.definition.topic.name == arguments.topic]
    if not plans:
        raise ConfigurationError(f"{arguments.app} does not subscribe to {arguments.topic}")
    topic = plans[0].definition.topic
    for plan in plans:
        if plan.group.name == arguments.group:
            return topic, plan.group
    return topic, bus.catalogue.group(bus.catalogue.spec(topic), arguments.group)


async def _recorded(bus: Bus, arguments: Namespace) -> tuple[Topic[Any], GroupSpec]:
    """The topic and the group as their broker has them on record: no program is there to say otherwise."""
    adapter, name = bus.broker(arguments.topic).adapter, arguments.topic
    kept = await adapter.generations(TopicSpec(name))
    topic, ordered = Topic(name), None
    if kept:
        await adapter.declare(Topology(kept, mode="verify"))
        topic = Topic(name, ordered=kept[-1].ordered, partitions=kept[-1].partitions)
        known = [
            info for info in await adapter.groups() if (info.topic, info.group) == (name, arguments.group)
        ]
        ordered = False if any(info.ordered is False for info in known) else None
    return topic, bus.catalogue.group(bus.catalogue.spec(topic), arguments.group, ordered=ordered)


async def _list(letters: DeadLetters, arguments: Namespace) -> None:
    shown = 0
    async with aclosing(letters.browse(limit=arguments.limit)) as found:
        async for letter in found:
            shown += 1
            failed = letter.last_failed_at.isoformat(timespec="seconds") if letter.last_failed_at else "-"
            line = (
                f"{letter.id}  {failed}  {letter.cause or '-'}  attempts={letter.attempts}  {letter.reason}"
            )
            print(one_line(line))
    print(f"{shown} of {await letters.count()}")


async def _number(letters: DeadLetters, where: Where | None) -> int:
    if where is None:
        return await letters.count()
    number = 0
    async with aclosing(letters.browse(where=where)) as found:
        async for _ in found:
            number += 1
    return number
