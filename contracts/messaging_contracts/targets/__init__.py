"""What the suite needs to know of our own brokers; the author of another adapter tells the same of theirs."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

from messaging.registry import scheme_of
from messaging_contracts.under_test import Target


def target_of(url: str, *, store: str | None = None) -> Target:
    """What we know of the broker at this URL; of one that is not ours, the URL and nothing more.

    `store` is where idempotency lives; without it, on the broker itself, or in this process.
    """
    scheme = scheme_of(url).split("+", maxsplit=1)[0]
    if scheme == "memory":
        from messaging_contracts.targets import memory

        return memory.target(url, store)
    if scheme in {"redis", "rediss"}:
        from messaging_contracts.targets import redis

        return redis.target(url, store)
    if scheme in {"amqp", "amqps"}:
        from messaging_contracts.targets import rabbitmq

        return rabbitmq.target(url, store)
    if scheme == "kafka":
        from messaging_contracts.targets import kafka

        return kafka.target(url, store)
    if scheme == "sqs":
        from messaging_contracts.targets import sqs

        return sqs.target(url, store)
    return Target(url=url, short_lease_url=url, store=store)


def with_options(url: str, **options: Any) -> str:
    """The URL with these query parameters; any others stay."""
    base, _, query = url.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    given |= {name: str(value) for name, value in options.items()}
    return f"{base}?{urlencode(given)}"
