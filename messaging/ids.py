"""Message ids: UUIDv7, which sorts by time."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7


def new_id() -> str:
    """A new id, unique without coordination."""
    return str(uuid7())
