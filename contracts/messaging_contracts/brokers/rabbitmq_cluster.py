"""A RabbitMQ cluster of three nodes on this machine."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from messaging_contracts.brokers.broker import Command, Options
from messaging_contracts.brokers.find import native_program
from messaging_contracts.brokers.process import NativeBroker, start_native
from messaging_contracts.brokers.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

NODES = 3


class _Node(RabbitMQ):
    """One that joins the first, whose port mapper and cookie it uses."""

    def __init__(self, first: NativeBroker) -> None:
        self._first = first.command.environment

    def prepare(self, program: Path, home: Path, port: int, options: Options) -> Sequence[Command]:
        _, server = super().prepare(program, home, port, options)
        shared = {name: self._first[name] for name in ("HOME", "ERL_EPMD_PORT")}
        return [Command(server.arguments, {**server.environment, **shared})]


@contextmanager
def rabbitmq_cluster(*, timeout: float = 120) -> Generator[Sequence[NativeBroker]]:
    """The nodes of a cluster, to be killed or paused one at a time; the first ends last.

    :raises BrokerUnavailable: RabbitMQ cannot be had, or a node did not serve within `timeout` seconds
    """
    program = native_program(RabbitMQ())
    # Nodes that are no majority stop to serve: else both sides of a partition would go on.
    config = {"cluster_partition_handling": "pause_minority"}
    with ExitStack() as started:
        first = started.enter_context(start_native(RabbitMQ(), program, Options(config=config), timeout))
        join = {
            "cluster_formation.peer_discovery_backend": "classic_config",
            "cluster_formation.classic_config.nodes.1": first.command.environment["RABBITMQ_NODENAME"],
        }
        options = Options(config=config | join)
        others = [
            started.enter_context(start_native(_Node(first), program, options, timeout))
            for _ in range(NODES - 1)
        ]
        yield first, *others
