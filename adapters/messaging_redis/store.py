"""The idempotency store on Redis (23): a hash per key, every call one script."""

from __future__ import annotations

import logging
import time
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from messaging.errors import ConfigurationError, IdempotencyConflict
from messaging.store import BeginResult, Begun, Completed, IdempotencyStore, InProgress
from messaging_redis.connection import Connection
from messaging_redis.scripts import BEGIN, FINISH
from messaging_redis.server import evicts_keys
from messaging_redis.settings import RedisSettings

if TYPE_CHECKING:
    from messaging.clock import Clock

logger = logging.getLogger("messaging")

_LOOK_AGAIN = 60.0
"""Seconds after which the server is asked again whether it evicts keys."""
_FENCE_KEPT = 24 * 3600 * 1000
"""Milliseconds for which the fence of a key in no state stays. Later fences are larger all the same: they are times."""


class RedisStore(IdempotencyStore):
    """Shared by all processes that use the same server, prefix and namespace."""

    shared: ClassVar[bool] = True  # type: ignore[misc]

    def __init__(self, settings: RedisSettings) -> None:
        self._connection = Connection(settings)
        self._looked = -inf
        namespace = "" if settings.namespace is None else f"{settings.namespace}::"
        self._prefix = f"{settings.prefix}once:{namespace}"

    @classmethod
    def from_url(cls, url: str, *, clock: Clock) -> RedisStore:  # noqa: ARG003  the server's clock counts
        """See `IdempotencyStore.from_url`. Leases run on the server's clock."""
        return cls(RedisSettings.from_url(url))

    async def open(self) -> None:
        """See `IdempotencyStore.open`. Raises ConfigurationError for a server that would evict keys."""
        await self._connection.open()
        try:
            if wrong := await evicts_keys(self._connection):
                raise ConfigurationError(wrong)
            self._looked = time.monotonic()
        except BaseException:  # a cancelled start leaves nothing open either
            await self._connection.close()
            raise

    async def close(self) -> None:
        """See `IdempotencyStore.close`."""
        await self._connection.close()

    async def begin(self, key: str, *, digest: str, lease: float, token: str = "") -> BeginResult:
        """See `IdempotencyStore.begin`."""
        await self._look()
        state, number, result, has_result = await self._connection.run(
            BEGIN, [self._prefix + key], [digest, _milliseconds(lease), _FENCE_KEPT, token]
        )
        if state == b"conflict":
            raise IdempotencyConflict(
                f"idempotency key {key!r} was used before with another payload: a key stands for one payload"
            )
        if state == b"done":
            return Completed(result if has_result else None)
        if state == b"progress":
            return InProgress(int(number) / 1000)
        return Begun(int(number))

    async def _look(self) -> None:
        """Tell of a server that evicts keys by now: what they stand for is handled twice, and nobody would know."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN:
            return
        self._looked = now
        if wrong := await evicts_keys(self._connection):
            logger.error("%s", wrong, extra={"store": self._connection.settings.address})

    async def extend(self, key: str, fence: int, *, lease: float) -> bool:
        """See `IdempotencyStore.extend`."""
        return await self._finish(key, "extend", fence, _milliseconds(lease))

    async def complete(self, key: str, fence: int, *, result: bytes | None, ttl: float) -> bool:
        """See `IdempotencyStore.complete`."""
        return await self._finish(
            key, "complete", fence, _milliseconds(ttl), int(result is not None), result or b""
        )

    async def clear(self, key: str, fence: int) -> None:
        """See `IdempotencyStore.clear`."""
        await self._finish(key, "clear", fence, _FENCE_KEPT)

    async def _finish(self, key: str, kind: str, fence: int, milliseconds: int, *rest: Any) -> bool:
        arguments = [kind, fence, milliseconds, *(rest or (0, b""))]
        return bool(await self._connection.run(FINISH, [self._prefix + key], arguments))


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
