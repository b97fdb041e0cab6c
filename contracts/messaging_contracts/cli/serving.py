"""`up` and `run`: brokers that are there until they are ended, and a command that has them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from messaging_contracts import brokers
from messaging_contracts.cli.output import show

if TYPE_CHECKING:
    from argparse import (
        ArgumentParser,
        Namespace,
        _SubParsersAction,  # pyright: ignore[reportPrivateUsage]  argparse has no public name for it
    )
    from collections.abc import Sequence

    from messaging_contracts.brokers import Broker

NAMES = "one or more of " + ", ".join(brokers.NAMES)


def add(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add `up` and `run` to the commands."""
    command = commands.add_parser("up", help="start brokers, print their URLs, end them on Ctrl-C or SIGTERM")
    command.add_argument("brokers", nargs="+", choices=brokers.NAMES, metavar="BROKER", help=NAMES)
    command.set_defaults(run=up)

    command = commands.add_parser(
        "run",
        help="run a command with the brokers' URLs in its environment, then end them",
        usage="%(prog)s BROKER [BROKER ...] -- COMMAND ...",
    )
    command.add_argument("brokers", nargs="+", choices=brokers.NAMES, metavar="BROKER", help=NAMES)
    command.set_defaults(run=run)


def up(options: Namespace) -> int:
    """Start the brokers, print what a command on them needs, and stay until a signal ends this."""
    with ExitStack() as started:
        for name, value in environment(start(options.brokers, started)).items():
            show(f"{name}={value}")
        show("ready; Ctrl-C or SIGTERM ends them")
        while True:
            signal.pause()


def run(options: Namespace) -> int:
    """Run the command on the brokers; its exit status."""
    with ExitStack() as started:
        its_own = {**os.environ, **environment(start(options.brokers, started))}
        child = subprocess.Popen(options.command, env=its_own)
        try:
            # Ctrl-C reaches the child as well; it ends in its own way and tells by its status.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


def start(names: Sequence[str], started: ExitStack) -> list[Broker]:
    """Start the brokers, ended with `started`. Raises BrokerUnavailable."""
    return [started.enter_context(brokers.start(name)) for name in dict.fromkeys(names)]


def environment(running: Sequence[Broker]) -> dict[str, str]:
    """What a command on these brokers needs: their URLs, and what their clients read from the environment."""
    found: dict[str, str] = {}
    for broker in running:
        found[brokers.environment_variable(broker.name)] = broker.url
        found |= broker.client_environment
    return found
