"""Messages of other programs: everything is handled, nothing is assumed, and no header has control over us."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from messaging import Ack, Delivery, Outcome, Retry, RetryPolicy, Topic, fixed
from messaging_contracts.case import proves
from messaging_contracts.ledger import Ledger, Patience
from messaging_contracts.under_test import BrokerUnderTest

CONTROL = ("attempt", "failure", "reply-to", "not-before", "guard")
"""The control headers, after `messaging-`."""
FORGED = (
    "9999999999999999999999",
    "-1",
    "0",
    "NaN",
    "",
    "[" * 5000,
    "null",
    '{"last": 5}',
    "🦜",
    "alone",
    "tripped",
)


async def publish(
    broker: BrokerUnderTest, topic: Topic[Any], body: bytes, content_type: str | None = None, **headers: Any
) -> None:
    """Publish as another program."""
    assert broker.target.foreign is not None, (
        "this case needs a ForeignPublisher: see messaging_contracts.foreign"
    )
    await broker.target.foreign.publish(
        broker.bus, topic, body, headers=headers.get("headers", headers), content_type=content_type
    )


@proves("foreign")
async def a_bare_message_is_handled(broker: BrokerUnderTest) -> None:
    """A message without id, key, headers and content type is handled, with its position for an id (19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        await publish(broker, topic, b"\xff one")
        await publish(broker, topic, b"")
        await ledger.handled(2)
        await ledger.quiet()
    assert {one.payload for one in ledger.handlings} == {b"\xff one", b""}
    assert all(one.id for one in ledger.handlings)
    assert [(one.key, one.attempt) for one in ledger.handlings] == [(None, 1)] * 2, [
        one.key for one in ledger.handlings
    ]
    assert len(ledger.ids) == 2


@proves("foreign")
async def a_bare_message_keeps_its_id_through_its_failures(broker: BrokerUnderTest) -> None:
    """Once a foreign message has been given an id, its retries and its dead letter have the same one (19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()

    async def fail(_: Delivery[Any]) -> Outcome | None:
        return Retry()

    app = broker.app(topic, ledger, then=fail, retry=RetryPolicy(3, fixed(0.1)))
    async with app.running(broker.bus):
        await publish(broker, topic, b"body", tenant="theirs")
        (letter,) = await broker.letters(topic, count=1)
    assert ledger.ids == [letter.id]
    assert ledger.attempts(letter.id) == [1, 2, 3]
    assert (letter.message.body, letter.message.headers) == (b"body", {"tenant": "theirs"})


@proves("foreign")
async def headers_of_another_program_are_text(broker: BrokerUnderTest) -> None:
    """What another program put into its headers reaches the handler as text, unknown names included (19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        await publish(
            broker, topic, b"body", headers={"tenant": "theirs", "x-request-id": "7", "Größe": "é 🦜"}
        )
        await ledger.handled(1)
    assert ledger.handlings[0].headers == {"tenant": "theirs", "x-request-id": "7", "Größe": "é 🦜"}


@proves("foreign")
async def a_content_type_tells_the_format(broker: BrokerUnderTest) -> None:
    """JSON that says so is decoded; what nobody knows, or says nothing, is bytes, however it looks (19)."""
    topic, ledger = broker.topic(), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        await publish(broker, topic, b'{"a": 1}', "application/json; charset=utf-8")
        await ledger.handled(1)
        await publish(broker, topic, b'{"a": 2}', "application/x-unknown")
        await ledger.handled(2)
        await publish(broker, topic, b'{"a": 3}')
        await ledger.handled(3)
    assert ledger.payloads == [{"a": 1}, b'{"a": 2}', b'{"a": 3}']


@proves("foreign")
async def an_unreadable_message_can_be_corrected(broker: BrokerUnderTest) -> None:
    """Garbage of another program is a dead letter with the cause `deserialize`; corrected, it is handled (11, 19)."""
    topic, ledger = broker.topic(type=int), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        await publish(broker, topic, b"\xff\xfe no number", "application/json")
        (letter,) = await broker.letters(topic, count=1)
        assert (letter.cause, letter.message.body) == ("deserialize", b"\xff\xfe no number")
        await broker.bus.dead_letters(topic, group="billing").redrive(
            edit=lambda one: replace(one, body=b"5")
        )
        await ledger.handled(1)
    assert ledger.payloads == [5]
    assert await broker.letters(topic) == []


@proves("foreign")
async def forged_control_headers_have_no_control(broker: BrokerUnderTest) -> None:
    """Whatever our control headers are forged to, each message is handled once and nothing stops or loops (19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    async with broker.app(topic, ledger).running(broker.bus):
        for number, value in enumerate(FORGED):
            headers = {f"messaging-{name}": value for name in CONTROL}
            await publish(broker, topic, f"{number}".encode(), headers=headers)
        sentinel = await broker.bus.publish(topic, b"sentinel")

        def all_ended() -> bool:
            return sentinel.id in ledger.ids and len(ledger.done) + tripped >= len(FORGED) + 1

        tripped = FORGED.count(
            "tripped"
        )  # a forged verdict of the crash guard may cost its own message, no other
        await ledger.until(all_ended)
        await ledger.quiet()
    assert len(ledger.handlings) == len(ledger.ids)
    assert not any(name.startswith("messaging-") for one in ledger.handlings for name in one.headers)


@proves("foreign")
async def a_forged_counter_starts_no_loop(broker: BrokerUnderTest) -> None:
    """With native counters and origins forged as well, a failing message ends as one dead letter (19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    assert broker.target.foreign is not None, (
        "this case needs a ForeignPublisher: see messaging_contracts.foreign"
    )

    async def fail(_: Delivery[Any]) -> Outcome | None:
        return Retry()

    app = broker.app(topic, ledger, then=fail, retry=RetryPolicy(3, fixed(0.1)))
    async with app.running(broker.bus):
        for attempt in ("-5", "many", "2"):
            headers = {**broker.target.foreign.forgeries, "messaging-attempt": attempt}
            await publish(broker, topic, attempt.encode(), headers=headers)
        letters = await broker.letters(topic, count=3)
        await ledger.quiet()
    assert {letter.message.body for letter in letters} == {b"-5", b"many", b"2"}
    assert len(ledger.handlings) <= 3 * 3
    assert all(len(ledger.of(letter.id)) <= 3 for letter in letters)
    await broker.nothing_left(Topic(topic.name, partitions=topic.partitions))


@proves("foreign")
async def a_forged_counter_kills_no_healthy_message(broker: BrokerUnderTest) -> None:
    """A message that is handled well is done, whatever number of deliveries somebody wrote into it (19)."""
    topic, ledger = broker.topic(type=bytes), Ledger()
    assert broker.target.foreign is not None, (
        "this case needs a ForeignPublisher: see messaging_contracts.foreign"
    )
    async with broker.app(topic, ledger).running(broker.bus):
        await publish(broker, topic, b"healthy", headers=dict(broker.target.foreign.forgeries))
        await ledger.handled(1)
        await ledger.quiet()
    assert ledger.payloads == [b"healthy"]
    assert await broker.letters(topic) == []


@proves("foreign")
async def a_forged_reply_address_makes_us_publish_nowhere(broker: BrokerUnderTest) -> None:
    """A request whose reply should go to some topic is handled, and nothing arrives on that topic (19)."""
    echo, victim, ledger = broker.endpoint("echo", bytes, bytes), broker.topic("victim", type=bytes), Ledger()
    asked = Ledger()
    from_responder = broker.app(victim, ledger)

    async def start_responder() -> Any:
        from messaging import App

        app = App("prices")

        @app.respond(echo)
        async def answer(question: bytes, delivery: Delivery[Any]) -> bytes:
            with asked.handling(delivery):
                return question

        return app

    responder = await start_responder()
    async with from_responder.running(broker.bus), responder.running(broker.bus):
        for address in (victim.name, f"topic:{victim.name}", "", "../..", "🦜"):
            await publish(broker, echo.topic, b"hello", headers={"messaging-reply-to": address})
        await asked.handled(5)
        assert await broker.bus.request(echo, b"still there?", timeout=Patience.seconds) == b"still there?"
        sentinel = await broker.bus.publish(victim, b"sentinel")
        await ledger.handled(1)
        await ledger.quiet()
    ledger.assert_each_once([sentinel.id])


@proves("foreign")
async def an_ordered_topic_takes_a_message_without_a_key(broker: BrokerUnderTest) -> None:
    """A foreign message without a key on an ordered topic is handled, between the others, each once (10, 19)."""
    topic, ledger = broker.topic(type=bytes, ordered=True), Ledger()

    async def fail_once(delivery: Delivery[Any]) -> Outcome | None:
        await asyncio.sleep(0)
        return Retry(after=0.1) if delivery.payload == b"fails" and delivery.attempt == 1 else Ack()

    async with broker.app(topic, ledger, then=fail_once).running(broker.bus):
        for body in (b"bare", b"fails"):
            await publish(broker, topic, body)
        receipt = await broker.bus.publish(topic, b"ours", key="ann")
        await ledger.handled(4)
        await ledger.quiet()
    assert sorted(ledger.payloads) == [b"bare", b"fails", b"fails", b"ours"]
    assert ledger.attempts(receipt.id) == [1]
    assert len(ledger.ids) == 3
