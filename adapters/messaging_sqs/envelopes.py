"""Messages that SNS wraps in JSON: raw delivery of a subscription that works was switched off, by hand or by a tool.

Ours are told by our attribute inside, and are read as they were published. Else handlers would get the envelope,
without id, key and headers. What other programs published is left as it came.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, cast

from messaging_sqs.entries import ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("messaging")


class Envelopes:
    """Those of one queue: that there are some is told once."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._told = False

    def opened(self, messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The messages as they were published."""
        if all(message.get("MessageAttributes") for message in messages):
            return messages
        found = [opened(message) for message in messages]
        if not self._told and any(one is not message for one, message in zip(found, messages, strict=True)):
            self._told = True
            logger.warning(
                "SNS wraps the messages of %s: give the subscription of its queue RawMessageDelivery again, without "
                "which the next start is refused",
                self._where,
            )
        return found


def opened(message: dict[str, Any]) -> dict[str, Any]:
    """A message as it was published; itself where it is no envelope with one of ours."""
    body = message.get("Body", "")
    if message.get("MessageAttributes") or not body.startswith("{") or f'"{ATTRIBUTE}"' not in body:
        return message
    try:
        envelope: Any = json.loads(body)
    except (ValueError, RecursionError):
        return message
    if envelope.get("Type") != "Notification" or not isinstance(envelope.get("Message"), str):
        return message
    ours = _fields(_fields(envelope.get("MessageAttributes")).get(ATTRIBUTE))
    if not ours:
        return message
    attribute = {ATTRIBUTE: {"DataType": "String", "StringValue": ours.get("Value")}}
    return {**message, "Body": envelope["Message"], "MessageAttributes": attribute}


def _fields(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
