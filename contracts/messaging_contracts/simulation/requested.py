"""The requests of one history: how they are named, and which wait for their replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging import Endpoint
from messaging.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from messaging.adapter import Outgoing
    from messaging.message import Receipt

ENDPOINT: Endpoint[str, tuple[str, str]] = Endpoint("quotes", str, tuple[str, str])
"""A request is its own name; a reply names the request that it is of, and the handling that made it."""


class Requested:
    """Of all requesters: the library gives each request a new id, histories know it by its name."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """By the id of its message."""
        self._asking: set[str] = set()
        """Those that are not over."""
        self.until: dict[str, float] = {}
        """When the time of each is over, in virtual seconds."""
        self._owners: dict[str, str] = {}
        """Who asked: of those whose publish the broker has confirmed as well."""

    def name(self, id: str) -> str:
        """How the history calls this message."""
        return self.names.get(id, id)

    def begun(self, name: str, until: float) -> None:
        """It is asked."""
        self._asking.add(name)
        self.until[name] = until

    def sending(self, messages: Sequence[Outgoing]) -> None:
        """These are published: requests are named."""
        for outgoing in messages:
            if outgoing.reply_to is not None:
                self.names[outgoing.message.id] = ENDPOINT.topic.codec.decode(
                    outgoing.message.body, outgoing.message.content_type
                )

    def sent(
        self, messages: Sequence[Outgoing], results: Sequence[Receipt | PublishError], owner: str
    ) -> None:
        """These were published: whoever asked waits for nothing but the reply."""
        for outgoing, result in zip(messages, results, strict=True):
            name = self.names.get(outgoing.message.id)
            if name in self._asking and not isinstance(result, PublishError):
                self._owners[name] = owner

    def over(self, name: str) -> None:
        """The request has ended."""
        self._asking.discard(name)
        self._owners.pop(name, None)

    def waiting(self, owner: str) -> Collection[str]:
        """The requests of this process that wait for nothing but their replies."""
        return {name for name, asker in self._owners.items() if asker == owner}
