"""`capabilities`: run the contract suite, and write down what it has shown of each broker."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from messaging_contracts import brokers
from messaging_contracts.cli.output import silence
from messaging_contracts.cli.serving import NAMES, environment, start

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )

SERVERS = {"sqs": "on LocalStack", "elasticmq": "on ElasticMQ"}
"""What stands in for a broker that is a service."""


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `capabilities` to the commands."""
    command = commands.add_parser(
        "capabilities", help="run the contract suite and write the table of what each broker promises"
    )
    # argparse would look for the empty list among `choices`; an unknown name is refused by `start`.
    command.add_argument(
        "brokers", nargs="*", metavar="BROKER", help=f"{NAMES}; without any, one for each adapter"
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the Markdown file to write"
    )
    command.set_defaults(run=_capabilities)


def _capabilities(options: Namespace) -> int:
    from messaging_contracts.capabilities import report

    silence()
    with ExitStack() as started:
        running = start(options.brokers or brokers.with_an_adapter(), started)
        os.environ.update(environment(running))
        versions = {
            broker.url: f"{SERVERS.get(broker.name, '')} {broker.version}".strip() for broker in running
        }
        text, kept = asyncio.run(report({"memory://capabilities": "", **versions}))
    options.output.write_text(text, encoding="utf-8")
    return 0 if kept else 1
