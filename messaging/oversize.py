"""What a dead letter keeps of a message that is too large for it.

Another program may have published what only just fits, or fits compressed; with our headers beside it, it does not.
Its letter then holds the attributes, the beginning of the body and the failure record with the cause `oversize`, so
that an operator sees what it was, and none of its neighbours waits. It is redriven with a whole body only.

An adapter tries everything else first: a retry can be held (`Hold`), a copy can be compressed or referred to.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from messaging import failure

if TYPE_CHECKING:
    from datetime import datetime

    from messaging.adapter import Settlement
    from messaging.message import Key, Message

logger = logging.getLogger("messaging")

BODY_BYTES = 64 * 1024
"""Of the body that are kept."""
HEADERS_BYTES = 16 * 1024
"""Of all plain headers, in UTF-8: the first that fit are kept."""
KEY_BYTES = 4 * 1024
TEXT_BYTES = 1024
"""Of each other attribute."""


def cut(settlement: Settlement, *, group: str, size: int, most: int, now: datetime) -> tuple[Message, str]:
    """The message and the failure record of a letter that could not hold all, and says so; logged as a warning.

    `size` are the bytes that the whole letter would have had, `most` those that fit. The result stays below 100 KiB
    together, whatever the message was. Never raises.
    """
    delivery = settlement.delivery
    message = delivery.message
    kept = _shortened(message)
    reason = (
        f"The letter would have {size} bytes, and {most} fit: it holds the first {len(kept.body)} of the "
        f"{len(message.body)} bytes of the body."
    )
    logger.warning(
        "Message %s of %s/%s is too large for a whole dead letter. %s",
        kept.id,
        message.topic,
        group,
        reason,
        extra={"topic": message.topic, "group": group, "message_id": kept.id, "bytes": size},
    )
    record = failure.oversize(
        settlement.failure,
        reason=reason,
        attempt=delivery.attempt,
        body_bytes=max(1, len(message.body)),
        now=now,
    )
    return kept, record


def _shortened(message: Message) -> Message:
    headers: dict[str, str] = {}
    room = HEADERS_BYTES
    for name, value in message.headers.items():
        room -= len(name.encode("utf-8", "replace")) + len(value.encode("utf-8", "replace"))
        if room < 0:
            break
        headers[name] = value
    return replace(
        message,
        id=_text(message.id),
        body=message.body[:BODY_BYTES],
        key=_key(message.key),
        headers=headers,
        content_type=message.content_type and _text(message.content_type),
        type=message.type and _text(message.type),
        source=message.source and _text(message.source),
        correlation_id=message.correlation_id and _text(message.correlation_id),
        causation_id=message.causation_id and _text(message.causation_id),
    )


def _text(value: str, most: int = TEXT_BYTES) -> str:
    encoded = value.encode("utf-8", "replace")
    return value if len(encoded) <= most else encoded[:most].decode("utf-8", "ignore")


def _key(key: Key | None) -> Key | None:
    return _text(key, KEY_BYTES) if isinstance(key, str) else key and key[:KEY_BYTES]
