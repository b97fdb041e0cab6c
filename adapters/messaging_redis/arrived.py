"""Replies that have already arrived, read without a coroutine for each.

redis-py reads one reply at a time, through four calls; the replies of a batch lie in the buffer of its parser, which
is no public part of it: where it looks different than we know it, nothing has arrived, and redis-py reads each.
"""

from __future__ import annotations

from typing import Any, cast

from redis import exceptions as redis_errors

try:
    import hiredis
    from redis._parsers import hiredis as parser
except ImportError:
    hiredis = parser = None  # type: ignore[assignment]

_NOTHING_MORE: Any = getattr(cast("Any", parser), "NOT_ENOUGH_DATA", None)
_PUSH: Any = getattr(cast("Any", hiredis), "PushNotification", ())


def replies_arrived(connection: Any, most: int) -> list[Any]:
    """Up to `most` values or error replies, in order. Raises ConnectionError as `read_response` does."""
    reader = getattr(getattr(connection, "_parser", None), "_reader", None)
    if _NOTHING_MORE is None or reader is None or not hasattr(reader, "gets"):
        return []
    replies: list[Any] = []
    while len(replies) < most:
        reply = reader.gets()
        if reply is _NOTHING_MORE:
            break
        first = cast("Any", reply[0] if isinstance(reply, list) and reply else reply)
        if isinstance(first, redis_errors.ConnectionError):
            raise first
        if not isinstance(reply, _PUSH):  # nobody asked for these
            replies.append(reply)
    return replies
