"""`python -m messaging_contracts`: brokers for development, and commands run on them."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from messaging.errors import ConfigurationError
from messaging_contracts.brokers import BrokerUnavailable
from messaging_contracts.cli import capabilities, faults, serving, simulate, soak
from messaging_contracts.cli.output import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    given = list(sys.argv[1:] if arguments is None else arguments)
    # argparse cannot tell where a list of brokers ends and a command begins.
    split = given.index("--") if "--" in given else len(given)
    parser = _parser()
    options = parser.parse_args(given[:split])
    options.command = given[split + 1 :]
    if bool(options.command) != (options.run is serving.run):
        parser.error("`run` and only `run` takes a command, after `--`")
    try:
        status: int = options.run(options)
    except (BrokerUnavailable, ConfigurationError) as error:
        show(f"messaging_contracts: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m messaging_contracts", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (serving, capabilities, simulate, faults, soak):
        command.add(commands)
    return parser


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)
