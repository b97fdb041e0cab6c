"""`python -m messaging_contracts`: brokers for development, and commands run on them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from messaging.errors import ConfigurationError
from messaging_contracts import brokers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from messaging_contracts.brokers import Broker


SOAKED = ("redis", "rabbitmq", "kafka", "sqs")
"""The brokers of `soak`: in memory, the checker's own growth would be measured."""


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
    if bool(options.command) != (options.run is _run):
        parser.error("`run` and only `run` takes a command, after `--`")
    try:
        status: int = options.run(options)
    except (brokers.BrokerUnavailable, ConfigurationError) as error:
        print(f"messaging_contracts: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m messaging_contracts", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start brokers, print their URLs, end them on Ctrl-C or SIGTERM")
    up.add_argument("brokers", nargs="+", choices=brokers.NAMES, metavar="BROKER", help=_names())
    up.set_defaults(run=_up)

    run = commands.add_parser(
        "run",
        help="run a command with the brokers' URLs in its environment, then end them",
        usage="%(prog)s BROKER [BROKER ...] -- COMMAND ...",
    )
    run.add_argument("brokers", nargs="+", choices=brokers.NAMES, metavar="BROKER", help=_names())
    run.set_defaults(run=_run)

    capabilities = commands.add_parser(
        "capabilities", help="run the contract suite and write the table of what each broker promises"
    )
    # argparse would look for the empty list among `choices`; an unknown name is refused by `start`.
    capabilities.add_argument(
        "brokers", nargs="*", metavar="BROKER", help=f"{_names()}; without any, one for each adapter"
    )
    capabilities.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the Markdown file to write"
    )
    capabilities.set_defaults(run=_capabilities)

    simulation = commands.add_parser(
        "simulate", help="run random histories with faults in memory and virtual time, each made by its seed"
    )
    simulation.add_argument("--seed", type=int, metavar="N", help="replay this one and show its events")
    simulation.add_argument("--first", type=int, default=0, metavar="N", help="the first seed (default 0)")
    simulation.add_argument("--number", type=int, metavar="N", help="how many seeds (default: by time)")
    simulation.add_argument(
        "--seconds", type=float, metavar="S", help="stop after so long (default 60, unless --number is given)"
    )
    simulation.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that share the seeds (default 1)"
    )
    simulation.set_defaults(run=_simulate)

    faults = commands.add_parser("faults", help="break brokers, networks and members, and tell what was kept")
    faults.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="only this broker or this fault; several may be given. The table has what the journals have of the others",
    )
    faults.add_argument(
        "--broker",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="try a broker of your own instead: a class below messaging_contracts.faults.Ground; several may be given",
    )
    faults.add_argument("--whole", action="store_true", help="10 000 messages where the broker is restarted")
    faults.add_argument(
        "--minutes", type=float, default=38.0, metavar="N", help="after which no fault is begun (default 38)"
    )
    faults.add_argument(
        "--journals",
        type=Path,
        metavar="FOLDER",
        help="where what everybody wrote down is kept (default: a new folder, which is told)",
    )
    faults.add_argument("--output", type=Path, metavar="FILE", help="the Markdown file to write the table to")
    faults.set_defaults(run=_faults)

    soak = commands.add_parser("soak", help="minutes of load with faults: what processes take must not grow")
    soak.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long (default 10)")
    soak.add_argument(
        "--only",
        action="append",
        default=[],
        choices=SOAKED,
        metavar="BROKER",
        help="on this one (default: all)",
    )
    soak.add_argument("--output", type=Path, metavar="FILE", help="the Markdown file to write the figures to")
    soak.set_defaults(run=_soak)
    return parser


def _names() -> str:
    return "one or more of " + ", ".join(brokers.NAMES)


def _up(options: argparse.Namespace) -> int:
    with ExitStack() as started:
        for name, value in _environment(_start(options.brokers, started)).items():
            print(f"{name}={value}", flush=True)
        print("ready; Ctrl-C or SIGTERM ends them", flush=True)
        while True:
            signal.pause()


def _run(options: argparse.Namespace) -> int:
    with ExitStack() as started:
        environment = {**os.environ, **_environment(_start(options.brokers, started))}
        child = subprocess.Popen(options.command, env=environment)
        try:
            # Ctrl-C reaches the child as well; it ends in its own way and tells by its status.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


SERVERS = {"sqs": "on LocalStack", "elasticmq": "on ElasticMQ"}
"""What stands in for a broker that is a service."""


def _capabilities(options: argparse.Namespace) -> int:
    from messaging_contracts.capabilities import report

    logging.getLogger("messaging").setLevel(logging.CRITICAL)  # the cases provoke what it would tell
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    with ExitStack() as started:
        running = _start(options.brokers or brokers.with_an_adapter(), started)
        os.environ.update(_environment(running))
        versions = {
            broker.url: f"{SERVERS.get(broker.name, '')} {broker.version}".strip() for broker in running
        }
        text, kept = asyncio.run(report({"memory://capabilities": "", **versions}))
    options.output.write_text(text, encoding="utf-8")
    return 0 if kept else 1


def _faults(options: argparse.Namespace) -> int:
    from messaging_contracts.faults.grounds import ours, theirs
    from messaging_contracts.faults.report import page
    from messaging_contracts.faults.run import Run, kept

    logging.getLogger("messaging").setLevel(logging.CRITICAL)  # what it would tell was provoked
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    folder = options.journals or Path(tempfile.mkdtemp(prefix="faults-"))
    wanted = [name for given in options.only for name in given.split(",")]
    grounds = [theirs(name) for name in options.broker] or ours()
    began = time.monotonic()
    rows = Run(wanted, options.whole, folder, _show, options.minutes * 60, grounds).all()
    held = sum(row.held for row in rows)
    _show(
        f"{held} of {len(rows)} held in {(time.monotonic() - began) / 60:.1f} min; their histories are in {folder}"
    )
    if options.output is not None:
        options.output.write_text(page(kept(folder, grounds)), encoding="utf-8")
    return 0 if held == len(rows) else 1


def _soak(options: argparse.Namespace) -> int:
    from messaging_contracts.faults.soak import page, soak

    logging.getLogger("messaging").setLevel(logging.CRITICAL)  # what it would tell was provoked
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    seconds = options.minutes * 60
    found = soak(options.only or SOAKED, seconds, folder, _show)
    flat = all(one.flat for one in found)
    if options.output is not None:
        options.output.write_text(page(found, seconds), encoding="utf-8")
    _show(f"{'flat' if flat else 'NOT FLAT, or broken'}; the histories are in {folder}")
    return 0 if flat else 1


def _show(text: str) -> None:
    print(text, flush=True)


def _simulate(options: argparse.Namespace) -> int:
    from messaging_contracts.simulation.report import many, replay

    if options.seed is not None:
        return replay(options.seed, print)
    seconds = 60.0 if options.seconds is None and options.number is None else options.seconds
    return many(options.first, options.number, seconds, print, options.processes)


def _start(names: Sequence[str], started: ExitStack) -> list[Broker]:
    """Start the brokers, ended with `started`."""
    return [started.enter_context(brokers.start(name)) for name in dict.fromkeys(names)]


def _environment(running: Sequence[Broker]) -> dict[str, str]:
    """What a command on these brokers needs: their URLs, and what their clients read from the environment."""
    environment: dict[str, str] = {}
    for broker in running:
        environment[brokers.environment_variable(broker.name)] = broker.url
        environment |= broker.client_environment
    return environment


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
