"""How to make a broker of our own run out of memory, and well again."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from messaging_contracts.brokers.process import NativeBroker
from messaging_contracts.brokers.resp import Connection

if TYPE_CHECKING:
    from messaging_contracts.brokers import Broker

LITTLE = 1_000_000
"""Bytes: less than Redis takes for itself."""


def exhaust(broker: Broker, exhausted: bool) -> None:
    """Let the broker believe that its memory is full, or no longer so. Raises LookupError for one not known here."""
    if broker.name == "redis":
        with Connection(broker.url, 5) as connection:
            connection.call("CONFIG", "SET", "maxmemory", LITTLE if exhausted else 0)
    elif broker.name == "rabbitmq" and isinstance(broker, NativeBroker):
        share = "0.000001" if exhausted else "0.6"
        _rabbitmqctl(broker, "set_vm_memory_high_watermark", share)
    else:
        raise LookupError(f"it is not known here how {broker.name} runs out of memory")


def _rabbitmqctl(broker: NativeBroker, *words: str) -> None:
    server = broker.command
    program = server.arguments[0].replace("rabbitmq-server", "rabbitmqctl")
    subprocess.run(
        [program, *words],
        env={**os.environ, **server.environment},
        check=True,
        capture_output=True,
        timeout=60,
    )
