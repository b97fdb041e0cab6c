"""The hook by which the suite publishes as another program would: raw bytes and native headers, nothing of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from messaging import Bus, Topic


class ForeignPublisher(Protocol):
    """What the author of an adapter gives the suite, some ten lines over `bus.native`.

    It may also have `oddities`, a mapping as `forgeries`: headers whose values are no text, where the broker has such.
    """

    forgeries: Mapping[str, Any]
    """Native headers with which a hostile program would try to steer this adapter: forged counters, origins,
    partitions. The portable control headers are forged by the suite itself.
    """

    async def publish(
        self,
        bus: Bus,
        topic: Topic[Any],
        body: bytes,
        *,
        headers: Mapping[str, Any],
        content_type: str | None,
    ) -> None:
        """Put one message where the topic's groups read, confirmed, as a program without this library would.

        The topic has been declared. No id, no key and no attribute is added to what is given.
        """
        ...
