"""The failure record: what is known about a message's failures, carried in one header as ASCII JSON.

It travels with retry copies and dead letters, so it is bounded (`LIMIT`), holds the first and the last
failure only, and keeps counters across redrives. What comes back from the wire is never trusted: `parse`
takes anything. No arguments and no local variables are recorded, only what an exception says itself and where
it was raised.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from messaging.message import Unbegun
from messaging.stack import ErrorInfo, clip, describe

if TYPE_CHECKING:
    from messaging.adapter import RawDelivery
    from messaging.message import Message, Outcome, Reject

logger = logging.getLogger("messaging")

LIMIT = 16 * 1024
"""The longest record, in bytes."""

Cause: TypeAlias = Literal[
    "rejected",
    "exception",
    "max_attempts",
    "deserialize",
    "no_handler",
    "expired",
    "oversize",
    "lease_lost",
    "native_delivery_limit",
    "delay_unsupported",
]

_CAUSES = frozenset(get_args(Cause))
_VERSION = 1
_MOST = 1_000_000_000  # counters beyond this are forged
_LONGEST_PARSED = 4 * LIMIT  # what is longer was not written by us
# Bytes of JSON for each text; the sum over a record with two faults stays below LIMIT.
_NAME_BYTES = 200
_TEXT_BYTES = 700
_STACK_BYTES = 3800
_LEAF_BYTES = 120
_LEAVES = 8


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed attempt."""

    at: datetime | None
    cause: Cause
    reason: str = ""
    handler: str = ""
    attempt: int = 1
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """All that is known about a message's failures; an empty one where nothing is.

    `attempts` (those that began) and `deliveries` are totals over all redrives; `service`, `host`, `pid` and
    `library` are those of the last failure; `redrive_of` is the position that the last redrive took the message from.
    """

    first: Fault | None = None
    last: Fault | None = None
    topic: str = ""
    group: str = ""
    partition: int = 0
    position: str = ""
    attempts: int = 0
    deliveries: int = 0
    redrives: int = 0
    earlier_attempts: int = 0
    earlier_deliveries: int = 0
    """What `attempts` and `deliveries` were when it was last redriven."""
    service: str = ""
    host: str = ""
    pid: int = 0
    library: str = ""
    redrive_of: str = ""
    redriven_at: datetime | None = None
    cut_from: int = 0
    """Bytes of the body of which the letter keeps the beginning only; 0 where it keeps the whole message."""


def record(
    previous: str | None,
    *,
    message: Message,
    group: str,
    attempt: int,
    deliveries: int,
    partition: int,
    position: str,
    handler: str,
    reason: str,
    cause: str,
    error: BaseException | None,
    now: datetime,
    service: str,
) -> str:
    """The record of this failure, merged with the previous one.

    The first failure is kept, the last replaced, the counts go on.
    `cause` outside of `Cause` counts as "rejected". An exception group is recorded with its leaves.
    """
    known = parse(previous)
    fault = Fault(now, _cause(cause), reason, handler, attempt, None if error is None else describe(error))
    failure = replace(
        known,
        first=known.first or fault,
        last=fault,
        topic=message.topic,
        group=group,
        partition=partition,
        position=position,
        attempts=max(known.attempts, known.earlier_attempts + attempt),
        # A delayed copy starts the broker's count again: never fewer than attempts, never fewer than before.
        deliveries=max(known.deliveries, known.earlier_deliveries + max(deliveries, attempt)),
        service=service,
        host=_host(),
        pid=os.getpid(),
        library=_library(),
    )
    return _encode(failure)


def attempts_begun(delivery: RawDelivery, outcome: Outcome) -> int:
    """How many there were when this outcome came."""
    return delivery.attempt - 1 if isinstance(outcome, Unbegun) else delivery.attempt


def redriven(previous: str | None, now: datetime) -> str:
    """The record of a message that gets a new life: no failures, the counters kept, one redrive more."""
    known = parse(previous)
    return _encode(
        Failure(
            topic=known.topic,
            group=known.group,
            attempts=known.attempts,
            deliveries=known.deliveries,
            redrives=known.redrives + 1,
            earlier_attempts=known.attempts,
            earlier_deliveries=known.deliveries,
            redrive_of=known.position,
            redriven_at=now,
        )
    )


def oversize(previous: str | None, *, reason: str, attempt: int, body_bytes: int, now: datetime) -> str:
    """The record of a dead letter that could not hold its message, whose body had `body_bytes` (`messaging.oversize`).

    What it failed with before stays readable: the reason follows, its error is kept.
    """
    known = parse(previous)
    last = known.last or Fault(None, "oversize", attempt=attempt)
    if last.reason:
        reason = f"{reason} It had failed with {last.cause}: {last.reason}"
    fault = replace(last, at=now, cause="oversize", reason=reason)
    return _encode(replace(known, first=known.first or fault, last=fault, cut_from=body_bytes))


def parse(text: str | None) -> Failure:
    """Read a record. What is missing, garbage or forged is left out; never raises."""
    if not isinstance(text, str) or not text or len(text) > _LONGEST_PARSED:
        return Failure()
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return Failure()
    if not isinstance(fields, dict):
        return Failure()
    known = cast("dict[str, Any]", fields)
    last = _fault(known.get("last"))
    return Failure(
        first=_fault(known.get("first")) or last,
        last=last,
        topic=_text(known.get("topic"), _NAME_BYTES),
        group=_text(known.get("group"), _NAME_BYTES),
        partition=_count(known.get("partition")),
        position=_text(known.get("position"), _NAME_BYTES),
        attempts=_count(known.get("attempts")),
        deliveries=_count(known.get("deliveries")),
        redrives=_count(known.get("redrives")),
        earlier_attempts=_count(known.get("earlier_attempts")),
        earlier_deliveries=_count(known.get("earlier_deliveries")),
        service=_text(known.get("service"), _NAME_BYTES),
        host=_text(known.get("host"), _NAME_BYTES),
        pid=_count(known.get("pid")),
        library=_text(known.get("library"), _NAME_BYTES),
        redrive_of=_text(known.get("redrive_of"), _NAME_BYTES),
        redriven_at=_time(known.get("redriven_at")),
        cut_from=_count(known.get("cut_from")),
    )


def _encode(failure: Failure) -> str:
    fields: dict[str, Any] = {
        "version": _VERSION,
        "topic": clip(failure.topic, _NAME_BYTES),
        "group": clip(failure.group, _NAME_BYTES),
        "partition": failure.partition,
        "position": clip(failure.position, _NAME_BYTES),
        "attempts": failure.attempts,
        "deliveries": failure.deliveries,
        "redrives": failure.redrives,
        "earlier_attempts": failure.earlier_attempts,
        "earlier_deliveries": failure.earlier_deliveries,
        "service": clip(failure.service, _NAME_BYTES),
        "host": clip(failure.host, _NAME_BYTES),
        "pid": failure.pid,
        "library": clip(failure.library, _NAME_BYTES),
        "redrive_of": clip(failure.redrive_of, _NAME_BYTES),
        "redriven_at": _stamp(failure.redriven_at),
        "cut_from": failure.cut_from,
        "last": _fault_fields(failure.last),
        "first": None if failure.first is failure.last else _fault_fields(failure.first),
    }
    return json.dumps({name: value for name, value in fields.items() if value}, separators=(",", ":"))


def _fault_fields(fault: Fault | None) -> dict[str, Any] | None:
    if fault is None:
        return None
    fields: dict[str, Any] = {
        "at": _stamp(fault.at),
        "cause": fault.cause,
        "reason": clip(fault.reason, _TEXT_BYTES),
        "handler": clip(fault.handler, _NAME_BYTES),
        "attempt": fault.attempt,
    }
    if (error := fault.error) is not None:
        fields["type"] = clip(error.type, _NAME_BYTES)
        fields["message"] = clip(error.message, _TEXT_BYTES)
        fields["stack"] = clip(error.stack, _STACK_BYTES, middle=True)
        fields["fingerprint"] = error.fingerprint
        fields["leaves"] = [clip(leaf, _LEAF_BYTES) for leaf in error.leaves[:_LEAVES]]
    return {name: value for name, value in fields.items() if value}


def _fault(value: object) -> Fault | None:
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    return Fault(
        at=_time(fields.get("at")),
        cause=_cause(fields.get("cause")),
        reason=_text(fields.get("reason"), _TEXT_BYTES),
        handler=_text(fields.get("handler"), _NAME_BYTES),
        attempt=_count(fields.get("attempt")),
        error=_error(fields) if "type" in fields else None,
    )


def _error(fields: dict[str, Any]) -> ErrorInfo:
    leaves = fields.get("leaves")
    listed: list[Any] = cast("Any", leaves)[:_LEAVES] if isinstance(leaves, list) else []
    return ErrorInfo(
        type=_text(fields.get("type"), _NAME_BYTES),
        message=_text(fields.get("message"), _TEXT_BYTES),
        stack=clip(_text(fields.get("stack"), _LONGEST_PARSED), _STACK_BYTES, middle=True),
        fingerprint=_text(fields.get("fingerprint"), 32),
        leaves=tuple(_text(leaf, _LEAF_BYTES) for leaf in listed),
    )


def _cause(value: object) -> Cause:
    return cast("Cause", value) if isinstance(value, str) and value in _CAUSES else "rejected"


def _text(value: object, limit: int) -> str:
    return clip(value, limit) if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _MOST else 0


def _stamp(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


@cache
def _host() -> str:
    return socket.gethostname()


@cache
def _library() -> str:
    from importlib import metadata

    try:
        return metadata.version("messaging-ports")
    except metadata.PackageNotFoundError:
        return ""


def log_dead_letter(delivery: RawDelivery, outcome: Reject, cause: str, extra: dict[str, str]) -> None:
    """Tell operators of a message that its group gave up."""
    logger.error(
        "Message %s of %s became a dead letter of group %s (%s): %s",
        delivery.message.id,
        extra["topic"],
        extra["group"],
        cause,
        outcome.reason,
        extra={**extra, "message_id": delivery.message.id, "cause": cause},
    )
