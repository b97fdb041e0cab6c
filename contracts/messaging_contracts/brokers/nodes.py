"""Several servers on this machine that are one broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging_contracts.brokers.broker import Broker
from messaging_contracts.brokers.process import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_contracts.brokers.process import NativeBroker


class Nodes(Broker):
    """What is done to the broker is done to each of its nodes; the first, which may have more to it, ends last."""

    def __init__(self, name: str, scheme: str, nodes: Sequence[NativeBroker]) -> None:
        addresses = ",".join(f"{LOOPBACK}:{node.port}" for node in nodes)
        super().__init__(name, f"{scheme}://{addresses}", nodes[0].version)
        self.nodes = tuple(nodes)

    @property
    def pid(self) -> int:
        """The first node's process id."""
        return self.nodes[0].pid

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def restart(self) -> None:
        for node in self.nodes:
            node.restart()

    def pause(self) -> None:
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()
