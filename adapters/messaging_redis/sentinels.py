"""Who the master is, as the sentinels tell it: asked before each connection, and now and then."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from redis import exceptions as redis_errors
from redis.asyncio import sentinel

if TYPE_CHECKING:
    from collections.abc import Callable

    from messaging_redis.settings import RedisSettings

logger = logging.getLogger("messaging")

# Its parameters are not typed.
_sentinel = cast("Any", sentinel)

_ASKED_EVERY = 1.0
"""Seconds after which a master is noticed that took over while the former one still answers."""
_OTHERS = 0.1
"""Seconds for which the others may still answer after the first: one that was cut off may tell a former master."""


class Sentinels:
    """What redis-py's pool asks for the master. All are asked at once: one that is frozen must not use up the time."""

    def __init__(
        self, settings: RedisSettings, security: dict[str, Any], changed: Callable[[], None]
    ) -> None:
        password = settings.sentinel_password
        self._settings = settings
        self._changed = changed
        self._master: tuple[str, int] | None = None
        self._silent = False
        self._known = _sentinel.Sentinel(
            list(settings.hosts),
            sentinel_kwargs={
                **security,
                "ssl": settings.tls,
                "username": settings.sentinel_username,
                "password": None if password is None else password.get_secret_value(),
                "socket_timeout": settings.connect_timeout,
                "socket_connect_timeout": settings.connect_timeout,
            },
        )
        self._watching = asyncio.create_task(self._watch(), name="messaging-redis-sentinels")

    async def discover_master(self, name: str) -> tuple[str, int]:
        """The address of the master, as redis-py's pools ask for it. Raises MasterNotFoundError."""
        asked = {asyncio.create_task(self._ask(one, name)) for one in self._known.sentinels}
        answers: list[tuple[int, tuple[str, int]]] = []
        reasons: list[str] = []
        try:
            waiting, patience = asked, None
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED
                )
                for answer in (task.result() for task in done):
                    if isinstance(answer, str):
                        reasons.append(answer)
                    else:
                        answers.append(answer)
                if not done:
                    break
                patience = _OTHERS if answers else None
        finally:
            for task in asked:
                task.cancel()
        if not answers:
            raise _sentinel.MasterNotFoundError(
                f"No master found for {name!r}: {'; '.join(sorted(set(reasons)))}"
            )
        _, master = max(answers)
        former, self._master = self._master, master
        if former is not None and former != master:
            self._changed()
            logger.warning(
                "The sentinels at %s name another master, %s:%s in place of %s:%s. What the former one confirmed "
                "and did not pass on in time is lost, or delivered again",
                *(self._settings.address, *master, *former),
                extra={"broker": self._settings.address},
            )
        return master

    async def _ask(self, one: Any, name: str) -> tuple[int, tuple[str, int]] | str:
        """How new what this one knows is, and the address; or why there is none."""
        try:
            state = (await one.sentinel_masters()).get(name)
        except (redis_errors.RedisError, OSError) as error:
            return f"{error}" or type(error).__name__
        if state is None:
            return "a sentinel does not know it"
        if not self._known.check_master_state(state, name):
            return "a sentinel holds it for down"
        return int(state.get("config-epoch", 0)), (state["ip"], state["port"])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_ASKED_EVERY)
            try:
                await self.discover_master(self._settings.master or "")
                self._silent = False
            except redis_errors.RedisError as error:
                if not self._silent:
                    logger.warning(
                        "The sentinels at %s do not tell who the master is: %s. The connections that are there are "
                        "used; no other can be made",
                        *(self._settings.address, error),
                        extra={"broker": self._settings.address},
                    )
                self._silent = True

    async def close(self) -> None:
        self._watching.cancel()
        _ = await asyncio.wait((self._watching,))
        for one in self._known.sentinels:
            await one.aclose()
