"""`messaging generations`: change a topic's partitions or order while its programs run, and see how far that is."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging.adapter import GroupSpec, TopicSpec, Topology
from messaging.bus import connect
from messaging.cli.program import number_above_0
from messaging.errors import TopicNotFound

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )
    from collections.abc import Sequence

    from messaging.bus import Bus


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add the command and its two verbs."""
    parser = commands.add_parser(
        "generations", help="change a topic's partitions or order while its programs run"
    )
    verbs = parser.add_subparsers(required=True)
    texts = {
        "begin": "begin one: the publishers go there, the groups when they have handled the former one",
        "list": "show them, and what each group has handled of the former ones",
    }
    for verb, text in texts.items():
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("--url", help="the broker; else MESSAGING_URL or messaging.toml")
        command.add_argument("--namespace", help="else MESSAGING_NAMESPACE or messaging.toml")
        command.add_argument("--topic", required=True, help="the topic's name")
        if verb == "begin":
            command.add_argument(
                "--partitions", type=number_above_0, help="how many from now on; else as many as now"
            )
            order = command.add_mutually_exclusive_group()
            order.add_argument(
                "--ordered", action="store_const", const=True, help="keep order by key from now on"
            )
            order.add_argument(
                "--unordered", action="store_const", const=False, dest="ordered", help="give it up"
            )
            command.add_argument(
                "--grace",
                type=float,
                metavar="SECONDS",
                help="longer than any program takes to notice the change and to have its publishes confirmed; else "
                "the settings' publish_timeout and twice their generation_interval",
            )
        command.set_defaults(run=run, verb=verb, refuse=command.error)


def run(arguments: Namespace) -> None:
    """Connect, do it, show what there is now. Raises whatever the bus raises."""
    if arguments.verb == "begin" and arguments.partitions is None and arguments.ordered is None:
        arguments.refuse("say what is to change: --partitions N, --ordered or --unordered")
    asyncio.run(perform(arguments))


async def perform(arguments: Namespace) -> None:
    """The same on the running loop."""
    async with connect(arguments.url, namespace=arguments.namespace) as bus:
        if arguments.verb == "begin":
            grace = bus.settings.generation_grace if arguments.grace is None else arguments.grace
            await _existing(bus, arguments.topic)  # else who misspelt it would wait for nothing
            print(
                f"where order is kept this takes {grace:g} s, until every program has noticed; "
                f"interrupted, it goes on when it is called again",
                file=sys.stderr,
                flush=True,
            )
            await bus.begin_generation(
                arguments.topic,
                partitions=arguments.partitions,
                ordered=arguments.ordered,
                grace=grace,
            )
        await _list(bus, arguments.topic)


async def _existing(bus: Bus, topic: str) -> Sequence[TopicSpec]:
    kept = await bus.broker(topic).adapter.generations(TopicSpec(topic))
    if not kept:
        raise TopicNotFound(f"Topic {topic} does not exist, or its broker keeps no generations")
    return kept


async def _list(bus: Bus, topic: str) -> None:
    adapter = bus.broker(topic).adapter
    kept = await _existing(bus, topic)
    await adapter.declare(Topology(kept, mode="verify"))
    infos = [info for info in await adapter.groups() if info.topic == topic]
    for spec in kept:
        written = ", written" if spec is kept[-1] else ""
        print(f"generation {spec.generation}: {spec.partitions} partitions, ordered={spec.ordered}{written}")
        for info in infos:
            if info.generation == spec.generation:
                group = GroupSpec(replace(spec), info.group, bool(info.ordered))
                print(f"  {info.group}: {info.lag if info.lag is not None else 'unknown'} waiting", end="")
                if spec is not kept[-1] and info.ordered and kept[-1].ordered:
                    finished = len(await adapter.finished(group))
                    # A broker counts the marks that lie behind the messages as messages.
                    marks = ", end marks included" if finished < spec.partitions else ""
                    print(f"{marks}; {finished} of {spec.partitions} partitions handled to their end", end="")
                print()
