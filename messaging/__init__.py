"""One interface to RabbitMQ, Kafka, SQS/SNS, Redis Streams and memory, with one set of promises."""

from typing import TYPE_CHECKING

from messaging.lending import lent as _lent
from messaging.logs import set_up as _set_up

if TYPE_CHECKING:
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
    from messaging.settings import Settings

_set_up()

__getattr__ = _lent(
    __name__,
    {
        "adapter": "Capabilities",
        "app": "App",
        "bus": "Bus connect",
        "dead_letters": "DeadLetter DeadLetters",
        "errors": (
            "AuthenticationFailed Closed ConfigurationError ConnectionFailed DecodeError "
            "IdempotencyConflict InvalidMessage LeaseLost MessageTooLarge MessagingError MissingExtra "
            "NoGroup PublishError PublishManyError PublishUncertain RemoteError RequestTimeout "
            "TopicNotFound UnsupportedCapability"
        ),
        "health": "Health",
        "message": "Ack Delivery Endpoint Handler Message Outcome Receipt Reject Release Retry Topic",
        "middleware.retry": "RetryPolicy exponential fixed",
        "settings": "Settings",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
