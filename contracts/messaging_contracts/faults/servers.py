"""What is done to a broker of our own by its own commands: its memory or its disk is full, it ends all connections."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from messaging_contracts.brokers.process import NativeBroker
from messaging_contracts.brokers.resp import Connection, ReplyError

if TYPE_CHECKING:
    from messaging_contracts.brokers import Broker
    from messaging_contracts.faults.ground import Resource

LITTLE = 1_000_000
"""Bytes: less than Redis takes for itself."""
_LOOKS = 300
_PAUSE = 0.05
"""Seconds between looks whether Redis has noticed."""


def exhaust(broker: Broker, resource: Resource, exhausted: bool) -> None:
    """Let the broker believe that this is full, or no longer so. Raises LookupError where that is not known here."""
    if broker.name == "redis" and resource == "memory":
        with Connection(broker.url, 5) as connection:
            connection.call("CONFIG", "SET", "maxmemory", LITTLE if exhausted else 0)
    elif broker.name == "redis":
        _refuse_snapshots(broker, exhausted)
    elif broker.name == "rabbitmq" and resource == "memory":
        _rabbitmqctl(broker, "set_vm_memory_high_watermark", "0.000001" if exhausted else "0.6")
    elif broker.name == "rabbitmq":
        _rabbitmqctl(broker, "set_disk_free_limit", "1000000GB" if exhausted else "1MB")
    else:
        raise LookupError(f"it is not known here how the {resource} of {broker.name} is exhausted")


def close_connections(broker: Broker) -> None:
    """Let the broker end all connections. Raises LookupError where that is not known here."""
    if broker.name == "redis":
        with Connection(broker.url, 5) as connection:
            connection.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    elif broker.name == "rabbitmq":
        _rabbitmqctl(broker, "close_all_connections", "a fault that was asked for")
    else:
        raise LookupError(f"it is not known here how {broker.name} ends connections")


def _refuse_snapshots(broker: Broker, refused: bool) -> None:
    """Redis takes no writes (MISCONF) while it cannot store what it was told to store."""
    assert isinstance(broker, NativeBroker), "the file is beside a native broker only"
    snapshot = broker.home / "dump.rdb"
    with Connection(broker.url, 5) as connection:
        if not refused:
            connection.call("CONFIG", "SET", "save", "")
            shutil.rmtree(snapshot)
            return
        snapshot.unlink(missing_ok=True)
        (snapshot / "in the way").mkdir(parents=True)
        connection.call("CONFIG", "SET", "save", "3600 1")
        connection.call("BGSAVE", "SCHEDULE")
        for _ in range(_LOOKS):
            try:
                connection.call("PING")
            except ReplyError as error:
                if error.code == "MISCONF":
                    return
                raise
            time.sleep(_PAUSE)
    raise TimeoutError(f"{broker.name} stored its snapshot although it cannot, or is slow to notice")


def _rabbitmqctl(broker: Broker, *words: str) -> None:
    assert isinstance(broker, NativeBroker), "its tools are beside a native broker only"
    server = broker.command
    program = server.arguments[0].replace("rabbitmq-server", "rabbitmqctl")
    subprocess.run(
        [program, *words],
        env={**os.environ, **server.environment},
        check=True,
        capture_output=True,
        timeout=150,  # its runtime starts slowly on a machine with other work
    )
