"""A Redis cluster of three nodes on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from messaging_contracts.brokers.broker import NotReady, Options
from messaging_contracts.brokers.find import native_program
from messaging_contracts.brokers.nodes import Nodes
from messaging_contracts.brokers.process import (
    LOOPBACK,
    NativeBroker,
    free_port,
    start_native,
    wait_until_ready,
)
from messaging_contracts.brokers.redis import Redis
from messaging_contracts.brokers.resp import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = 16_384
NODES = 3


class RedisCluster(Nodes):
    """Three nodes seen as one broker; `nodes` are the single ones, to be killed or paused one at a time."""

    def __init__(self, nodes: Sequence[NativeBroker]) -> None:
        super().__init__("redis", "redis+cluster", nodes)

    def restart(self) -> None:
        super().restart()
        _wait_until_whole(self.nodes, timeout=30)


def redis_cluster(*, timeout: float = 30) -> RedisCluster:
    """Start three native Redis nodes that share the slots; returns when each of them serves the whole
    cluster.

    :raises BrokerUnavailable: Redis cannot be had, or the cluster was not whole within `timeout` seconds
    """
    program = native_program(Redis())
    with ExitStack() as started:
        nodes: list[NativeBroker] = []
        buses: list[int] = []
        for _ in range(NODES):
            bus = free_port()
            config = {"cluster-enabled": "yes", "cluster-port": str(bus), "cluster-node-timeout": "2000"}
            nodes.append(
                started.enter_context(start_native(Redis(), program, Options(config=config), timeout))
            )
            buses.append(bus)
        for index, node in enumerate(nodes):
            first, last = SLOTS * index // NODES, SLOTS * (index + 1) // NODES - 1
            with Connection(node.url, timeout) as connection:
                # Distinct epochs from the start spare the nodes a round of settling equal ones.
                connection.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                connection.call("CLUSTER", "ADDSLOTSRANGE", first, last)
                for other, bus in zip(nodes[:index], buses[:index], strict=True):
                    connection.call("CLUSTER", "MEET", LOOPBACK, other.port, bus)
        _wait_until_whole(nodes, timeout)
        started.pop_all()
    return RedisCluster(nodes)


def _wait_until_whole(nodes: Sequence[NativeBroker], timeout: float) -> None:
    for node in nodes:
        wait_until_ready("the Redis cluster", partial(_whole, node.url), node.watch, timeout)


def _whole(url: str, timeout: float) -> str:
    with Connection(url, timeout) as connection:
        text = str(connection.call("CLUSTER", "INFO"))
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if fields.get("cluster_state") != "ok" or fields.get("cluster_size") != str(NODES):
        raise NotReady(f"cluster_state is {fields.get('cluster_state')}")
    return "ok"
