"""Every error that the library raises on purpose, under one root."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.message import Receipt


class MessagingError(Exception):
    """The root of all errors of this library."""


class ConfigurationError(MessagingError):
    """The program or its settings ask for something that cannot be; nothing was started or sent."""


class UnsupportedCapability(ConfigurationError):
    """The chosen broker cannot keep a promise that the program asks for; raised at start."""


class MissingExtra(ConfigurationError):
    """The adapter for a URL scheme needs a library that is not installed; the text says what to install."""


class ConnectionFailed(MessagingError):
    """The broker could not be reached, or the connection that carried the call was lost."""


class AuthenticationFailed(ConnectionFailed):
    """The broker refused the credentials. Never retried."""


class PublishError(MessagingError):
    """A message was not published. Unless it is a `PublishUncertain`, the broker does not have it."""


class InvalidMessage(PublishError):
    """The payload, key, headers or options cannot be carried; nothing was sent."""


class NoGroup(PublishError):
    """No group subscribes to the topic, and the caller asked for one (`mandatory=True` or a request)."""


class MessageTooLarge(InvalidMessage):
    """The encoded message exceeds what the broker carries; nothing was sent."""


class TopicNotFound(PublishError):
    """The topic, or the group, does not exist and the topology setting forbids creating it."""


class TopologyLost(TopicNotFound):
    """What held a group's messages is gone although the group was not deleted: somebody removed it on the broker.

    Where the topology may be declared, members make it anew and go on.
    """


class PublishUncertain(PublishError):
    """The message was handed over but never confirmed: the broker may or may not have it."""


class PublishManyError(PublishError):
    """Some messages of a `publish_many` failed; `results` holds a receipt or an error for each, in order."""

    def __init__(self, results: Sequence[Receipt | PublishError]) -> None:
        self.results = tuple(results)
        self.errors = tuple(result for result in self.results if isinstance(result, PublishError))
        first = f"; the first: {self.errors[0]}" if self.errors else ""
        super().__init__(f"{len(self.errors)} of {len(self.results)} messages were not published{first}")


class IdempotencyConflict(MessagingError):
    """One idempotency key was used for two different payloads."""


class DecodeError(MessagingError):
    """The body of a message cannot be read as the type that the topic declares."""


class RequestTimeout(MessagingError, TimeoutError):
    """No reply arrived in time."""


class RemoteError(MessagingError):
    """The responder failed; `remote_type` and `remote_message` are those of its exception."""

    def __init__(self, remote_type: str, remote_message: str) -> None:
        self.remote_type = remote_type
        self.remote_message = remote_message
        super().__init__(f"{remote_type}: {remote_message}")


class LeaseLost(MessagingError):
    """The delivery now belongs to somebody else; what was asked of it was refused."""


class Closed(MessagingError):
    """The bus was used before it was opened or after it was closed."""


def is_fatal(error: Exception) -> bool:
    """Whether it is known that trying again heals nothing (25): what is not known to be fatal is transient.

    An error that is none of ours is a defect of an adapter, and fatal.
    """
    known = (AuthenticationFailed, ConfigurationError, TopicNotFound, Closed)
    return isinstance(error, known) or not isinstance(error, MessagingError)
