"""What cannot be carried or kept is refused before anything is sent, never cut, clamped or dropped."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from messaging import (
    App,
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    Delivery,
    InvalidMessage,
    MessageTooLarge,
    Topic,
    connect,
)
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger
from messaging_contracts.targets import with_options
from messaging_contracts.under_test import BrokerUnderTest

MOST_TO_ALLOCATE = 600 * 1024 * 1024
"""Bytes. A limit beyond this is not tried, for the sake of the machine."""


async def refused(attempt: Awaitable[object], error: type[Exception], *names: str) -> None:
    """Fails unless the attempt raises this error with these words in its text."""
    try:
        await attempt
    except error as raised:
        missing = [name for name in names if name not in str(raised)]
        assert not missing, f"{raised!r} does not name {missing}"
        return
    raise AssertionError(f"nothing was refused; {error.__name__} was expected")


async def nothing_was_sent(
    broker: BrokerUnderTest, topic: Topic[Any], payload: Any, key: str | None = None
) -> None:
    """Of a topic with one partition and the group `billing`, only what is published now arrives."""
    ledger = Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        receipt = await broker.bus.publish(topic, payload, key=key)
        await ledger.handled(1)
    ledger.assert_each_once([receipt.id])


@proves("validation")
async def a_payload_of_the_wrong_type_is_refused(broker: BrokerUnderTest) -> None:
    """A payload that is none of the topic's type raises InvalidMessage, alone or among others; nothing is sent."""
    topic = broker.topic(type=int, partitions=1)
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    await refused(broker.bus.publish(topic, "no number"), InvalidMessage)
    await refused(broker.bus.publish_many(topic, [1, "no number", 3]), InvalidMessage)
    await nothing_was_sent(broker, topic, 7)


@proves("validation")
async def a_header_that_cannot_be_carried_is_refused(broker: BrokerUnderTest) -> None:
    """A header that some broker would drop, cut or take for its own raises InvalidMessage and is named."""
    topic = broker.topic(partitions=1)
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    bad: list[dict[Any, Any]] = [
        {"number": 1},
        {"nothing": None},
        {"nul": "a\0b"},
        {"lone": "\ud800"},
        {"x" * 201: "long name"},
        {"large": "x" * 70_000},
        {"messaging-attempt": "9"},
        {"ce_id": "mine"},
        {"cloudEvents_id": "mine"},
    ]
    for headers in bad:
        (name,) = headers
        await refused(broker.bus.publish(topic, 1, headers=headers), InvalidMessage, name[:40])
    await refused(broker.bus.publish(topic, 1, headers={"": "empty"}), InvalidMessage)
    await nothing_was_sent(broker, topic, 7)


@proves("validation")
async def a_message_that_is_too_large_is_refused(broker: BrokerUnderTest) -> None:
    """A message beyond `max_message_bytes` raises MessageTooLarge before it is sent, and the bus goes on."""
    topic = broker.topic(type=bytes, partitions=1)
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    most = broker.capabilities.max_message_bytes
    assert most > 0
    if most <= MOST_TO_ALLOCATE:
        await refused(broker.bus.publish(topic, bytes(most + 1)), MessageTooLarge)
    await nothing_was_sent(broker, topic, b"fits")


@proves("validation")
async def an_ordered_message_needs_a_key(broker: BrokerUnderTest) -> None:
    """Publishing without a key to an ordered topic raises InvalidMessage and sends nothing (10)."""
    topic = broker.topic(ordered=True, partitions=1)
    broker.uses(topic, "billing")
    await broker.bus.declare(topic, groups=["billing"])
    await refused(broker.bus.publish(topic, 1), InvalidMessage)
    await refused(broker.bus.publish(topic, 1, key=5), InvalidMessage)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await nothing_was_sent(broker, topic, 7, key="ann")


@proves("validation")
async def an_illegal_name_is_refused(broker: BrokerUnderTest) -> None:
    """A topic or group name that is not portable raises ConfigurationError, whatever this broker would allow (17)."""
    for name in ("", "a b", "a/b", "a:b", ".a", "-a", "größe", "x" * 201, "a\n"):
        await refused(broker.bus.publish(name, 1), ConfigurationError)
        await refused(broker.bus.declare(broker.topic(), groups=[name]), ConfigurationError)


@proves("validation")
async def two_subscriptions_to_the_same_are_refused(broker: BrokerUnderTest) -> None:
    """One app with two subscriptions of one topic and group raises at start, for they would steal from each other."""
    topic, ledger, app = broker.topic(), Ledger(), App("billing")
    broker.uses(topic, "billing")

    async def start() -> None:
        @app.subscribe(topic)
        async def one(_: Any, delivery: Delivery[Any]) -> None:
            with ledger.handling(delivery):
                pass

        @app.subscribe(topic)
        async def two(_: Any, delivery: Delivery[Any]) -> None:
            with ledger.handling(delivery):
                pass

        async with app.running(broker.bus):
            pass

    await refused(start(), ConfigurationError, topic.name)


@proves("validation")
async def an_unknown_option_is_refused(broker: BrokerUnderTest) -> None:
    """A URL with an option that the adapter does not know raises ConfigurationError and names it."""
    url = with_options(broker.target.url, colour="blue")

    async def start() -> None:
        async with connect(url):
            pass

    await refused(start(), ConfigurationError, "colour")


@proves("validation")
async def a_broker_that_is_not_there_is_named(broker: BrokerUnderTest) -> None:
    """Where nothing listens, opening raises ConnectionFailed with the host, soon, and shows no password."""
    parts = urlsplit(broker.target.url)
    if parts.port is None:
        return  # a broker without an address is always there
    absent = urlunsplit(parts._replace(netloc="someone:secret-word@127.0.0.1:1"))

    async def start() -> None:
        async with connect(absent):
            pass

    started = time.monotonic()
    await refused(start(), ConnectionFailed, "127.0.0.1")
    assert time.monotonic() - started < 15
    try:
        await start()
    except ConnectionFailed as error:
        assert "secret-word" not in f"{error} {error!r}"


@proves("validation")
async def wrong_credentials_are_told_at_once(broker: BrokerUnderTest) -> None:
    """A user whom the broker does not know gets AuthenticationFailed, without another try, and shows no password."""
    parts = urlsplit(broker.target.url)
    if parts.port is None:
        return  # a broker without an address asks for no credentials
    stranger = urlunsplit(parts._replace(netloc=f"stranger:secret-word@{parts.hostname}:{parts.port}"))
    started, text = time.monotonic(), ""
    try:
        async with connect(stranger):
            pass
    except AuthenticationFailed as error:
        text = f"{error} {error!r}"
    assert text, "a stranger was let in"
    assert "secret-word" not in text
    assert time.monotonic() - started < 10
