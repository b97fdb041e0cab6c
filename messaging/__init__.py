"""One interface to RabbitMQ, Kafka, SQS/SNS, Redis Streams and memory, with one set of promises."""

import logging
from typing import TYPE_CHECKING, Any

from messaging.adapter import Capabilities
from messaging.app import App
from messaging.bus import Bus, connect
from messaging.dead_letters import DeadLetter, DeadLetters
from messaging.errors import (
    AuthenticationFailed,
    Closed,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    IdempotencyConflict,
    InvalidMessage,
    LeaseLost,
    MessageTooLarge,
    MessagingError,
    MissingExtra,
    NoGroup,
    PublishError,
    PublishManyError,
    PublishUncertain,
    RemoteError,
    RequestTimeout,
    TopicNotFound,
    UnsupportedCapability,
)
from messaging.health import Health
from messaging.message import (
    Ack,
    Delivery,
    Endpoint,
    Handler,
    Message,
    Outcome,
    Receipt,
    Reject,
    Release,
    Retry,
    Topic,
)
from messaging.middleware.retry import RetryPolicy, exponential, fixed

if TYPE_CHECKING:
    from messaging.settings import Settings

logging.getLogger("messaging").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """`Settings` is loaded on first use: pydantic-settings takes as long to import as all the rest."""
    if name == "Settings":
        from messaging.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Ack",
    "App",
    "AuthenticationFailed",
    "Bus",
    "Capabilities",
    "Closed",
    "ConfigurationError",
    "ConnectionFailed",
    "DeadLetter",
    "DeadLetters",
    "DecodeError",
    "Delivery",
    "Endpoint",
    "Handler",
    "Health",
    "IdempotencyConflict",
    "InvalidMessage",
    "LeaseLost",
    "Message",
    "MessageTooLarge",
    "MessagingError",
    "MissingExtra",
    "NoGroup",
    "Outcome",
    "PublishError",
    "PublishManyError",
    "PublishUncertain",
    "Receipt",
    "Reject",
    "Release",
    "RemoteError",
    "RequestTimeout",
    "Retry",
    "RetryPolicy",
    "Settings",
    "Topic",
    "TopicNotFound",
    "UnsupportedCapability",
    "connect",
    "exponential",
    "fixed",
]
