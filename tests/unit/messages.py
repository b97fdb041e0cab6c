"""A message as most are, for tests of how adapters write one."""

from datetime import UTC, datetime
from typing import Any

from messaging.message import Message

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def message(**more: Any) -> Message:
    fields: dict[str, Any] = {"id": "m1", "topic": "orders", "body": b"{}", "time": NOON}
    return Message(**fields | more)
