"""A Kafka cluster of three brokers on this machine."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from messaging_contracts.brokers.broker import NotReady, Options
from messaging_contracts.brokers.find import native_program
from messaging_contracts.brokers.kafka import Kafka, Member
from messaging_contracts.brokers.kafka_protocol import brokers_of
from messaging_contracts.brokers.nodes import Nodes
from messaging_contracts.brokers.process import (
    NativeBroker,
    free_port,
    start_native,
    wait_until_ready,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NODES = 3


class KafkaCluster(Nodes):
    """Three brokers seen as one; `nodes` are the single ones, to be killed or paused one at a time.

    The controller is a process of its own, which only `stop` ends.
    """

    def __init__(self, nodes: Sequence[NativeBroker]) -> None:
        super().__init__("kafka", "kafka", nodes)

    def restart(self) -> None:
        super().restart()
        self.wait_until_whole()

    def mend(self) -> None:
        """Let those that were paused go on, start those that were killed, and wait until it is whole."""
        for node in self.nodes:
            if node.runs:
                node.resume()
            else:
                node.restart()
        self.wait_until_whole()

    def wait_until_whole(self, timeout: float = 60) -> None:
        """Wait until each broker that runs knows all of them.

        :raises BrokerUnavailable: they do not within `timeout` seconds
        """
        for node in self.nodes:
            wait_until_ready("the Kafka cluster", partial(_whole, node.url), node.watch, timeout)


def kafka_cluster(*, config: Mapping[str, str] | None = None, timeout: float = 90) -> KafkaCluster:
    """Start three native Kafka brokers and their controller; returns when each broker knows all of them.

    :param config: lines for every server.properties
    :raises BrokerUnavailable: Kafka cannot be had, or the cluster was not whole within `timeout` seconds
    """
    identity, port = secrets.token_urlsafe(16), free_port()
    options = Options(config=dict(config or {}))

    def start(number: int) -> NativeBroker:
        kind = Kafka(Member(number, identity, port))
        return started.enter_context(start_native(kind, native_program(kind), options, timeout))

    with ExitStack() as started:
        with ThreadPoolExecutor(NODES) as pool:
            cluster = KafkaCluster(list(pool.map(start, range(1, NODES + 1))))
        cluster.wait_until_whole(timeout)
        started.pop_all()
    return cluster


def _whole(url: str, timeout: float) -> str:
    if brokers_of(url, timeout) != NODES:
        raise NotReady("it does not know all brokers")
    return "ok"
