from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messaging.adapter import DeadLetterStore, StoredLetter
from messaging.dead_letters import PAGE, DeadLetters, Origin
from messaging.errors import ConfigurationError, InvalidMessage, PublishError, PublishManyError
from messaging.failure import oversize, parse, record
from messaging.message import Message, Receipt

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Store(DeadLetterStore):
    """Letters in a list; watches that letters are taken from an open scan only, and how many are held at once."""

    def __init__(self, letters, clock):
        self.letters = list(letters)
        self.clock = clock
        self.open = 0
        self.sent = []
        self.batches = []
        self.refused = set()

    async def count(self):
        return len(self.letters)

    @asynccontextmanager
    async def scan(self):
        self.open += 1
        letters = list(self.letters)

        async def each():
            for letter in letters:
                yield letter

        try:
            yield each()
        finally:
            self.open -= 1

    async def redrive(self, letters):
        assert self.open == 1
        self.batches.append((self.clock.monotonic(), len(letters)))
        results = []
        for letter, message, failure in letters:
            if message.id in self.refused:
                results.append(PublishError(f"{message.id} is refused"))
                continue
            self.letters.remove(letter)
            self.sent.append((message, failure))
            results.append(None)
        return results

    async def purge(self, letters):
        assert self.open == 1
        self.batches.append((self.clock.monotonic(), len(letters)))
        for letter in letters:
            self.letters.remove(letter)
        return len(letters)


def letter(number, *, reason="no customer", key=None, foreign=False):
    message = Message(id=f"m{number}", topic="orders", body=b"{}", key=key)
    error = ValueError("x")
    text = record(
        None,
        message=message,
        group="billing",
        attempt=3,
        deliveries=4,
        partition=2,
        position=f"{number}-0",
        handler="shop.charge",
        reason=reason,
        cause="max_attempts",
        error=error,
        now=NOW,
        service="shop",
    )
    return StoredLetter(message, None if foreign else text, number)


def face(clock, letters):
    store = Store(letters, clock)

    async def ready():
        """The group is there, and of this shape."""

    return store, DeadLetters(store, clock=clock, topic="orders", group="billing", most=1000, ready=ready)


async def ids(letters, **options):
    return [letter.id async for letter in letters.browse(**options)]


async def test_count_is_the_stores(clock):
    _, letters = face(clock, [letter(1), letter(2)])

    assert await letters.count() == 2


# browse


async def test_a_dead_letter_tells_what_happened(clock):
    _, letters = face(clock, [letter(1)])

    found = [dead async for dead in letters.browse()]

    dead: Any = found[0]
    assert (dead.id, dead.message.id) == ("m1", "m1")
    assert (dead.reason, dead.cause, dead.handler) == ("no customer", "max_attempts", "shop.charge")
    assert (dead.error.type, dead.error.message) == ("ValueError", "x")
    assert (dead.attempts, dead.deliveries, dead.redrives) == (3, 4, 0)
    assert (dead.first_failed_at, dead.last_failed_at) == (NOW, NOW)
    assert dead.origin == Origin("orders", "billing", 2, "1-0")
    assert dead.failure.service == "shop"


async def test_a_letter_of_another_program_can_be_browsed(clock):
    _, letters = face(clock, [letter(1, foreign=True)])

    found = [dead async for dead in letters.browse()]

    assert (found[0].id, found[0].reason, found[0].cause, found[0].attempts) == ("m1", "", None, 0)
    assert found[0].origin == Origin("orders", "billing")


async def test_browsing_consumes_nothing_and_keeps_the_order(clock):
    store, letters = face(clock, [letter(number) for number in range(5)])

    assert await ids(letters) == await ids(letters) == ["m0", "m1", "m2", "m3", "m4"]
    assert len(store.letters) == 5


async def test_browsing_is_limited_and_filtered(clock):
    _, letters = face(clock, [letter(number, reason=str(number % 2)) for number in range(10)])

    assert await ids(letters, limit=2) == ["m0", "m1"]
    assert await ids(letters, limit=2, where=lambda dead: dead.reason == "1") == ["m1", "m3"]
    assert await ids(letters, limit=0) == []


async def test_leaving_early_closes_the_scan(clock):
    store, letters = face(clock, [letter(1), letter(2)])

    async with aclosing(letters.browse()) as found:
        async for _ in found:
            break

    assert store.open == 0


# redrive


async def test_redrive_sends_the_message_unchanged_with_its_counters(clock):
    store, letters = face(clock, [letter(1)])

    assert await letters.redrive() == 1
    message, failure = store.sent[0]
    assert message == letter(1).message
    assert (parse(failure).last, parse(failure).attempts, parse(failure).redrives) == (None, 3, 1)
    assert parse(failure).redriven_at == datetime.fromtimestamp(clock.time(), UTC)
    assert store.letters == []


@pytest.mark.parametrize("chosen", [["m1", "m3", "absent"], {"m1", "m3"}])
async def test_redrive_takes_the_chosen_ids_only(clock, chosen):
    store, letters = face(clock, [letter(number) for number in range(5)])

    assert await letters.redrive(ids=chosen) == 2
    assert [message.id for message, _ in store.sent] == ["m1", "m3"]


async def test_one_id_may_be_given_as_it_is(clock):
    store, letters = face(clock, [letter(number) for number in range(5)])

    assert await letters.redrive(ids="m2") == 1
    assert len(store.letters) == 4


async def test_no_ids_are_no_letters(clock):
    _, letters = face(clock, [letter(1)])

    assert await letters.redrive(ids=[]) == 0
    assert await letters.purge(ids=[]) == 0


async def test_redrive_takes_what_the_filter_says(clock):
    store, letters = face(clock, [letter(number, reason=str(number % 2)) for number in range(6)])

    assert await letters.redrive(where=lambda dead: dead.reason == "1", ids=["m0", "m1", "m3"]) == 2
    assert [message.id for message, _ in store.sent] == ["m1", "m3"]


async def test_redrive_can_correct_the_message(clock):
    store, letters = face(clock, [letter(1)])

    await letters.redrive(edit=lambda message: replace(message, body=b"fixed", headers={"by": "hand"}))

    assert store.sent[0][0].body == b"fixed"
    assert store.sent[0][0].headers == {"by": "hand"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda message: replace(message, id="other"),
        lambda message: replace(message, topic="other"),
        lambda message: None,
        lambda message: replace(message, headers={"messaging-attempt": "1"}),
        lambda message: replace(message, headers={"a": "\x00"}),
        lambda message: replace(message, body="text"),
        lambda message: replace(message, body=b"x" * 1001),
        lambda message: replace(message, key=5),
        lambda message: replace(message, content_type="x" * 500),
        lambda message: replace(message, content_type="caf\u00e9/json"),
        lambda message: message.headers.update(a=5) or message,
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
async def test_an_edit_that_cannot_be_is_refused_before_anything_is_sent(clock, edit, dry_run):
    store, letters = face(clock, [letter(1), letter(2)])

    with pytest.raises(InvalidMessage):
        await letters.redrive(edit=edit, dry_run=dry_run)

    assert store.sent == []
    assert len(store.letters) == 2
    assert store.open == 0


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("type", 5),
        ("source", "\ud800"),
        ("correlation_id", b"x"),
        ("causation_id", "\x00"),
        ("time", 0.0),
        ("expires_at", "2090-01-01"),
        ("not_before", 5),
        ("headers", None),
        ("headers", [("a", "b")]),
    ],
)
async def test_an_edit_is_told_which_attribute_is_of_a_wrong_kind(clock, attribute, value):
    store, letters = face(clock, [letter(1), letter(2)])

    with pytest.raises(InvalidMessage, match=rf"{attribute} of message m1 of orders"):
        await letters.redrive(edit=lambda message: replace(message, **{attribute: value}))

    assert store.sent == []
    assert len(store.letters) == 2


async def test_a_time_that_an_edit_gives_without_a_zone_is_utc(clock):
    store, letters = face(clock, [letter(1)])

    await letters.redrive(edit=lambda message: replace(message, expires_at=datetime(2090, 1, 1)))

    assert store.sent[0][0].expires_at == datetime(2090, 1, 1, tzinfo=UTC)


def cut_letter(number):
    whole = letter(number)
    text = oversize(whole.failure, reason="Too large.", attempt=3, body_bytes=4_000_000, now=NOW)
    return replace(whole, failure=text)


async def test_a_letter_that_was_cut_is_not_redriven_without_a_body(clock):
    store, letters = face(clock, [letter(1), cut_letter(2), letter(3)])

    assert await letters.redrive(dry_run=True) == 2
    with pytest.raises(PublishManyError, match=r"m2 of orders/billing.*2 of the 4000000 bytes"):
        await letters.redrive()
    assert [message.id for message, _ in store.sent] == ["m1", "m3"]

    assert await letters.redrive(edit=lambda message: replace(message, body=b"whole")) == 1
    assert store.sent[-1][0].body == b"whole"


async def test_a_letter_whose_message_has_expired_is_not_redriven_unless_it_is_given_time(clock, caplog):
    now = datetime.fromtimestamp(clock.time(), UTC)
    soon, later = now + timedelta(seconds=60), now + timedelta(days=1)
    store, letters = face(clock, [letter(1), expiring_letter(2, soon), expiring_letter(3, later)])
    await clock.advance(60)

    assert await letters.redrive(dry_run=True) == 2
    with (
        caplog.at_level(logging.INFO, "messaging"),
        pytest.raises(PublishManyError, match="m2 .* expired at"),
    ):
        await letters.redrive()
    assert [message.id for message, _ in store.sent] == ["m1", "m3"]
    assert [stored.message.id for stored in store.letters] == ["m2"]
    assert "redrove 2 dead letters of orders/billing to its tail, 1 refused" in caplog.text

    with pytest.raises(PublishManyError):
        await letters.redrive(edit=lambda message: replace(message, body=b"fixed"))
    assert await letters.redrive(edit=lambda message: replace(message, expires_at=later), dry_run=True) == 1
    assert await letters.redrive(edit=lambda message: replace(message, expires_at=None)) == 1
    assert store.letters == []


def expiring_letter(number, at):
    whole = letter(number)
    return replace(whole, message=replace(whole.message, expires_at=at))


async def test_headers_of_another_program_are_redriven_as_they_are(clock):
    odd = StoredLetter(Message(id="m1", topic="orders", body=b"", headers={"ce-odd": "\x00"}), None, 1)
    store, letters = face(clock, [odd])

    assert await letters.redrive(edit=lambda message: replace(message, body=b"x")) == 1
    assert store.sent[0][0].headers == {"ce-odd": "\x00"}


async def test_an_error_of_the_edit_leaves_the_rest_dead(clock):
    def edit(message):
        if message.id == f"m{PAGE}":
            raise KeyError("field")
        return message

    store, letters = face(clock, [letter(number) for number in range(PAGE + 1)])

    with pytest.raises(KeyError):
        await letters.redrive(edit=edit)

    assert [stored.message.id for stored in store.letters] == [f"m{PAGE}"]
    assert store.open == 0


async def test_what_cannot_be_sent_stays_dead_and_the_rest_is_tried(clock):
    store, letters = face(clock, [letter(number) for number in range(4)])
    store.refused = {"m1", "m2"}

    with pytest.raises(PublishManyError) as caught:
        await letters.redrive()

    assert [isinstance(result, PublishError) for result in caught.value.results] == [False, True, True, False]
    assert caught.value.results[3] == Receipt("m3")
    assert [stored.message.id for stored in store.letters] == ["m1", "m2"]


async def test_at_most_a_page_of_letters_is_taken_at_once(clock):
    store, letters = face(clock, [letter(number) for number in range(2 * PAGE + 50)])

    assert await letters.redrive() == 2 * PAGE + 50
    assert [size for _, size in store.batches] == [PAGE, PAGE, 50]


async def test_a_rate_spreads_the_messages_over_the_clock(clock):
    store, letters = face(clock, [letter(number) for number in range(4)])

    task = asyncio.create_task(letters.redrive(rate=2))
    await clock.advance(10)

    assert await task == 4
    assert store.batches == [(0.0, 1), (0.5, 1), (1.0, 1), (1.5, 1)]


async def test_a_high_rate_goes_out_in_small_batches(clock):
    store, letters = face(clock, [letter(number) for number in range(100)])

    task = asyncio.create_task(letters.redrive(rate=200))
    await clock.advance(10)

    assert await task == 100
    assert {size for _, size in store.batches} == {20}
    assert store.batches[-1][0] == pytest.approx(0.4)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "2/s"])
async def test_a_rate_that_is_none_is_refused(clock, rate):
    _, letters = face(clock, [letter(1)])

    with pytest.raises(ConfigurationError, match="rate"):
        await letters.redrive(rate=rate)


async def test_a_dry_run_sends_nothing_and_says_what_order_is_lost(clock, caplog):
    store, letters = face(clock, [letter(1, key="a"), letter(2), letter(3, key="b")])

    with caplog.at_level(logging.INFO, "messaging"):
        assert await letters.redrive(dry_run=True, rate=0.1) == 3

    assert store.sent == []
    assert len(store.letters) == 3
    assert "would redrive 3" in caplog.text
    assert "for the 2 with a key" in caplog.text
    assert "is not restored" in caplog.text
    assert caplog.records[0].topic == "orders"


async def test_cancelling_a_redrive_closes_the_scan_and_loses_nothing(clock):
    store, letters = face(clock, [letter(number) for number in range(4)])

    task = asyncio.create_task(letters.redrive(rate=1))
    await clock.advance(1.5)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.open == 0
    assert len(store.sent) + len(store.letters) == 4


# purge


async def test_purge_deletes_the_chosen_letters(clock, caplog):
    store, letters = face(clock, [letter(number, reason=str(number % 2)) for number in range(6)])

    with caplog.at_level(logging.INFO, "messaging"):
        assert await letters.purge(ids=["m0"]) == 1
        assert await letters.purge(where=lambda dead: dead.reason == "1") == 3
        assert await letters.purge() == 2
        assert await letters.purge() == 0

    assert store.letters == []
    assert store.sent == []
    assert len(caplog.records) == 3


async def test_purge_goes_page_by_page(clock):
    store, letters = face(clock, [letter(number) for number in range(PAGE + 1)])

    assert await letters.purge() == PAGE + 1
    assert [size for _, size in store.batches] == [PAGE, 1]


def test_the_repr_names_topic_and_group(clock):
    assert repr(face(clock, [])[1]) == "DeadLetters('orders', group='billing')"
