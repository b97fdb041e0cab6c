"""What the server is: version, eviction and durability, looked at when the adapter opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from messaging.errors import ConfigurationError
from messaging_redis.connection import described, translate
from messaging_redis.topology import as_dict

if TYPE_CHECKING:
    from messaging_redis.connection import Connection

Durability: TypeAlias = Literal["none", "process crash", "power loss", "unknown"]

OLDEST = (7, 0)
MEMORY = ("INFO", "memory")
WRITE = ("EVAL", "#!lua\nreturn 1", 0)
"""Writes nothing, and is refused where a publish is: such a script is taken for one that writes."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server, or one node of a cluster."""

    version: str
    durability: Durability
    evicts: bool = False
    """Whether it removes what has a time to live when its memory is full."""


async def inspect(connection: Connection) -> Server:
    """Look at the server. Raises ConfigurationError where it is too old, or would evict our keys.

    A user who may not ask gets "unknown", never a promise.
    """
    hello, info, fsync = await connection.exchange(
        "", (("HELLO",), ("INFO",), ("CONFIG", "GET", "appendfsync"))
    )
    address = connection.settings.address
    version = "" if isinstance(hello, Exception) else _text(as_dict(hello).get("version", b""))
    facts = {} if isinstance(info, Exception) else _lines(info)
    version = facts.get("redis_version") or version
    if version and _numbers(version) < OLDEST:
        raise ConfigurationError(f"Redis at {address} is version {version}; 7.0 or newer is needed")
    policy = facts.get("maxmemory_policy", "")
    if policy.startswith("allkeys-"):
        raise ConfigurationError(
            f"Redis at {address} has maxmemory-policy {policy}: it would evict streams and lose messages. "
            f"Set noeviction"
        )
    return Server(version, _durability(facts, fsync), policy.startswith("volatile-"))


def eviction(info: Any) -> str:
    """What the answer to `MEMORY` says the server evicts; empty for nothing, and where the user may not ask."""
    policy = "" if isinstance(info, Exception) else _lines(info).get("maxmemory_policy", "")
    return "" if policy == "noeviction" else policy


def refusal(connection: Connection, written: Any) -> str | None:
    """What the answer to `WRITE` says against publishes; None where they are taken, and where the user may not ask."""
    if not isinstance(written, Exception) or isinstance(translate(written, "EVAL"), ConfigurationError):
        return None
    return f"Redis at {connection.settings.address} takes no publishes for now: {described(written)}"


async def evicts_keys(connection: Connection) -> str | None:
    """What is wrong with a store on a server that would evict what has a time to live, as idempotency keys have.

    None where it would not, and where the user may not ask.
    """
    (info,) = await connection.exchange("", (MEMORY,))
    if not (policy := eviction(info)):
        return None
    return (
        f"Redis at {connection.settings.address} has maxmemory-policy {policy}: as an idempotency store it would "
        f"evict keys, and what they stand for would be handled twice. Set noeviction, or name another store"
    )


def _durability(facts: dict[str, str], fsync: Any) -> Durability:
    if "aof_enabled" not in facts:
        return "unknown"
    if facts["aof_enabled"] != "1":
        return "none"
    always = not isinstance(fsync, Exception) and _text(as_dict(fsync).get("appendfsync", b"")) == "always"
    return "power loss" if always else "process crash"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _lines(info: Any) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(info).splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
