"""Batches of ten: many entries in few calls, and one result for each entry.

A call has at most ten entries and so many bytes. Each entry of it may fail alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from messaging.errors import MessagingError
from messaging_sqs.connection import DOUBTFUL, Interrupted, Service, Throttled, throttled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.slots import Slots
    from messaging_sqs.connection import Connection

MOST = 10
"""Amazon SQS and Amazon SNS quotas: entries of one batch."""

Result: TypeAlias = "dict[str, Any] | MessagingError"


class Refused(MessagingError):
    """The service refused one entry for good; `code` says why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


async def in_batches(
    connection: Connection,
    service: Service,
    operation: str,
    entries: Sequence[dict[str, Any]],
    *,
    field: str = "Entries",
    sizes: Sequence[int] = (),
    most_bytes: int = 0,
    in_turn: bool = False,
    once: bool = False,
    slots: Slots | None = None,
    **parameters: Any,
) -> list[Result]:
    """What the service says of each entry, in order: never an exception for one of them.

    `sizes` are the entries' bytes; together at most `most_bytes` in one call. `in_turn`: one call after the other.
    `once`: of what nothing deduplicates, a call whose fate is unknown is not repeated. Each call takes one of `slots`.
    Cancelling leaves the calls that run to end by themselves.
    """
    results: list[Result] = [Interrupted("the service said nothing about this entry")] * len(entries)

    async def one(part: range) -> None:
        batch = [{**entries[at], "Id": str(at)} for at in part]
        if slots is not None:
            await slots.take(1)
        try:
            answer = await connection.call(service, operation, once=once, **parameters, **{field: batch})
        except MessagingError as error:
            for at in part:
                results[at] = error
            return
        finally:
            if slots is not None:
                slots.give_back(1)
        for success in answer.get("Successful", ()):
            results[int(success["Id"])] = success
        for failure in answer.get("Failed", ()):
            results[int(failure["Id"])] = _failed(failure, doubtful=DOUBTFUL in answer)

    parts = _parts(len(entries), sizes, most_bytes)
    if in_turn or len(parts) == 1:
        for part in parts:
            await one(part)
    else:
        await asyncio.gather(*(one(part) for part in parts))
    return results


def _failed(failure: dict[str, Any], *, doubtful: bool) -> MessagingError:
    code, text = str(failure.get("Code", "")), str(failure.get("Message", ""))
    if doubtful:
        return Interrupted(f"{code}: {text}; an attempt before this one may have been taken")
    if throttled(code):
        return Throttled(f"refused for now: {code} {text}")
    if code in {"InternalError", "InternalFailure", "ServiceUnavailable", "InternalServerError"}:
        return Interrupted(f"failed in the service: {code} {text}")
    return Refused(code, text)


def _parts(number: int, sizes: Sequence[int], most_bytes: int) -> list[range]:
    if not most_bytes:
        return [range(start, min(start + MOST, number)) for start in range(0, number, MOST)]
    parts: list[range] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and (at - start == MOST or total + size > most_bytes):
            parts.append(range(start, at))
            start, total = at, 0
        total += size
    if number > start:
        parts.append(range(start, number))
    return parts


def is_gone(error: MessagingError) -> bool:
    """Whether the service says that a received message is no longer ours."""
    if not isinstance(error, Refused):
        return False
    return (
        error.code.endswith(("ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidIdFormat"))
        or "expired" in error.text
        or "does not exist" in error.text
    )
