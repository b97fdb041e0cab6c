"""What failed in one batch of `Adapter.publish`, by key: on an ordered topic it takes what is behind it with it (7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from messaging.calls import overtaking

if TYPE_CHECKING:
    from messaging.adapter import Outgoing
    from messaging.errors import PublishError
    from messaging.message import Key, Message


class FailedKeys(dict[tuple[str, "Key | None"], tuple["Message", "PublishError"]]):
    """Of one batch, the topics and keys of which nothing more is to be stored. Empty until something failed."""

    __slots__ = ()

    def add(self, outgoing: Outgoing, error: PublishError) -> None:
        """This message failed. Without order that concerns no other."""
        if outgoing.topic.ordered:
            self.setdefault((outgoing.topic.name, outgoing.message.key), (outgoing.message, error))

    def behind(self, outgoing: Outgoing) -> PublishError | None:
        """The result of a message that is behind a failed one of its key, and so is not to be sent; else None."""
        found = self.get((outgoing.topic.name, outgoing.message.key))
        return None if found is None else overtaking(outgoing.message, *found)
