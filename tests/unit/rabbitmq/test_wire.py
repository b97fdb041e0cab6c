"""Frames reach who they are for, however the network cuts them, and say what pamqp reads in them."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from messaging.errors import ConnectionFailed
from messaging_rabbitmq import outlet
from messaging_rabbitmq.arrivals import Arrivals, content_header
from messaging_rabbitmq.confirms import Batch, Confirms
from messaging_rabbitmq.frames import parcel_of
from messaging_rabbitmq.wire import FrameReader
from tests.contract.rabbitmq import by_hand
from tests.contract.rabbitmq.by_hand import MICROSECONDS, long, nested, short


class Socket:
    """What was written, and whether it still can be."""

    def __init__(self):
        self.written = b""
        self.open = True

    def write(self, frames: bytes, *, more: bool = False) -> bool:
        self.written += frames if self.open else b""
        return self.open


def arrivals(arrived, socket=None):
    return Arrivals(SimpleNamespace(is_closed=False), 1, socket or Socket(), arrived)  # type: ignore[arg-type]


def delivered(channel: int, tag: int, *parts: bytes, **properties) -> list[bytes]:
    header = ContentHeader(body_size=sum(map(len, parts)), properties=Basic.Properties(**properties))
    frames = [Basic.Deliver("tag", tag, tag % 2 == 0, "orders", "é"), header, *map(ContentBody, parts)]
    return [marshal(frame, channel) for frame in frames]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:end] for start, end in zip(edges, edges[1:], strict=False)]


def without_signs(passed: bytes) -> bytes:
    return passed.replace(Heartbeat().marshal(), b"")


@given(st.lists(st.integers(0, 10_000)))
def test_a_tapped_channel_gets_its_messages_and_aiormq_all_else_wherever_it_is_cut(places):
    async def play():
        reader = FrameReader(asyncio.get_running_loop())
        came: list[DeliveredMessage] = []
        reader.taps[1] = arrivals(came.append)
        others = [
            *delivered(2, 7, b"other"),
            marshal(Basic.ConsumeOk("tag"), 1),
            marshal(Channel.CloseOk(), 2),
        ]
        mixed = [
            *delivered(1, 1, b"x" * 300, headers={"a": "b"}, message_id="one"),
            others[0],
            *delivered(1, 2),
            *others[1:4],
            *delivered(1, 3, b"first ", b"second"),
            *others[4:],
        ]
        for piece in cut(b"".join(mixed), places):
            reader.feed_data(piece)
        reader.feed_eof()

        assert [(one.delivery_tag, one.redelivered, one.body) for one in came] == [
            (1, False, b"x" * 300),
            (2, True, b""),
            (3, False, b"first second"),
        ]
        assert {(one.consumer_tag, one.exchange, one.routing_key) for one in came} == {("tag", "orders", "é")}
        assert came[0].header.properties.headers == {"a": "b"}
        assert without_signs(await reader.read()) == b"".join(others)

    asyncio.run(play())


async def test_a_channel_that_is_closed_is_no_longer_tapped():
    reader = FrameReader(asyncio.get_running_loop())
    tap = arrivals(lambda _: None)
    reader.taps[1] = tap
    close = marshal(Channel.Close(404, "gone", 0, 0), 1)
    later = delivered(1, 1, b"of the next channel with this number")

    reader.feed_data(b"".join([close, *later]))
    reader.feed_eof()

    assert tap.closed
    assert await reader.read() == b"".join([close, *later])


def test_what_is_settled_goes_out_in_order_as_pamqp_writes_it():
    socket = Socket()
    tap = arrivals(lambda _: None, socket)

    tap.acknowledge([(7, True), (9, False)])
    tap.give_back(8, requeue=True)
    tap.give_back(2**40, requeue=False)

    expected = [Basic.Ack(7, True), Basic.Ack(9), Basic.Nack(8, False, True), Basic.Reject(2**40, False)]
    assert socket.written == b"".join(marshal(frame, 1) for frame in expected)


@pytest.mark.parametrize("gone", ["channel", "connection"])
def test_nothing_is_settled_on_a_channel_that_is_gone(gone):
    socket = Socket()
    tap = arrivals(lambda _: None, socket)
    tap.closed, socket.open = gone == "channel", gone == "channel"

    with pytest.raises(ChannelInvalidStateError):
        tap.acknowledge([(1, True)])
    with pytest.raises(ChannelInvalidStateError):
        tap.give_back(1, requeue=True)
    assert not socket.written


async def test_what_is_no_amqp_goes_to_aiormq_at_once():
    reader = FrameReader(asyncio.get_running_loop())
    reader.feed_data(b"AMQP\x00\x00\x09\x01")
    reader.feed_data(b"HT")
    reader.feed_eof()
    assert await reader.read() == b"AMQP\x00\x00\x09\x01HT"


async def test_a_header_that_is_none_goes_to_aiormq():
    reader = FrameReader(asyncio.get_running_loop())
    came: list[DeliveredMessage] = []
    reader.taps[1] = arrivals(came.append)
    method, _, body = delivered(1, 1, b"body", message_id="id")
    broken = by_hand.frame(2, 1, b"\x00\x3c\0\0")

    reader.feed_data(method + broken + body)
    reader.feed_eof()

    assert not came
    assert without_signs(await reader.read()) == broken + body


@pytest.mark.parametrize(
    "properties",
    [
        Basic.Properties(),
        Basic.Properties(headers={"a": "b", "z": "", "é" * 60: "ü🎉"}, delivery_mode=2, message_id="id"),
        Basic.Properties(
            content_type="application/json",
            content_encoding="gzip",
            headers={"a": "x" * 70_000},
            delivery_mode=1,
            correlation_id="c" * 255,
            reply_to="r",
            message_id="m",
            timestamp=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        ),
        Basic.Properties(headers={"number": 7, "nested": {"a": [1, None]}, "text": "t"}),
        Basic.Properties(priority=3, expiration="1", message_type="t", user_id="u", app_id="a"),
    ],
)
def test_a_header_is_what_pamqp_reads(properties: Basic.Properties) -> None:
    frame = marshal(ContentHeader(body_size=12345, properties=properties), 3)
    around = b"before" + frame + b"behind"

    ours = content_header(around, 6 + 7, 6 + len(frame) - 1)

    theirs = unmarshal(frame)[2]
    assert ours is not None
    assert isinstance(theirs, ContentHeader)
    assert (ours.class_id, ours.weight, ours.body_size) == (theirs.class_id, theirs.weight, theirs.body_size)
    assert dict(ours.properties) == dict(theirs.properties)


@given(st.data())
def test_a_changed_header_is_read_as_by_pamqp_or_as_far_as_it_can_be(data):
    properties = Basic.Properties(content_type="a/b", headers={"k": "v", "l": "w"}, message_id="id")
    payload = bytearray(marshal(ContentHeader(body_size=9, properties=properties), 1)[7:-1])
    place, value = data.draw(st.integers(12, len(payload) - 1)), data.draw(st.integers(0, 255))
    payload[place] = value
    changed = bytes(payload)

    ours = content_header(b"......." + changed + b"\xce" + b"behind", 7, 7 + len(changed))

    expected = ContentHeader()
    try:
        expected.unmarshal(changed)
    except Exception:
        assert ours is not None
        assert ours.body_size == 9
        assert isinstance(ours.properties, Basic.Properties)
    else:
        assert ours is not None
        assert dict(ours.properties) == dict(expected.properties)


def unreadable(flags: int, *fields: bytes) -> list[bytes]:
    """A delivery with these properties."""
    frames = delivered(1, 1, b"body")
    frames[1] = by_hand.header(1, 4, flags, b"".join(fields))
    return frames


@pytest.mark.parametrize(
    ("frames", "read"),
    [
        (unreadable(1 << 7 | 1 << 6, short(b"id"), MICROSECONDS), {"message_id": "id", "timestamp": None}),
        (unreadable(1 << 7 | 1 << 6, short(b"id"), b"\xff" * 8), {"message_id": "id", "timestamp": None}),
        (
            unreadable(1 << 10 | 1 << 7, short("grün".encode("latin-1")), short(b"id")),
            {"correlation_id": "gr\\xfcn", "message_id": "id"},
        ),
        (unreadable(1 << 10 | 1 << 7, short(b"\xff" * 255), short(b"id")), {"message_id": "id"}),
        (unreadable(1 << 13 | 1 << 7, nested(1500), short(b"id")), {"headers": {}, "message_id": "id"}),
        (
            unreadable(
                1 << 13 | 1 << 7,
                long(
                    b"\x01aS" + long(b"A") + b"\x01bT" + MICROSECONDS + b"\x01\xffV\x01cV\x01dl" + b"\0" * 8
                ),
                short(b"id"),
            ),
            {"headers": {"a": "A", "c": None, "d": 0}, "message_id": "id"},
        ),
        (unreadable(1 << 13 | 1 << 7, long(b"\x01a?"), short(b"id")), {"headers": {}, "message_id": "id"}),
        (unreadable(1 << 15 | 1 << 6, short(b"a/b"), b"cut"), {"content_type": "a/b", "timestamp": None}),
    ],
)
def test_what_cannot_be_read_of_foreign_properties_costs_no_more_than_itself(frames, read, caplog):
    came: list[DeliveredMessage] = []
    tap = arrivals(came.append)

    taken = [tap.take(frame[0], frame, 7, len(frame) - 1) for frame in frames]

    assert taken == [True, True, True]
    (message,) = came
    assert message.body == b"body"
    assert {name: getattr(message.header.properties, name) for name in read} == read
    assert len(caplog.records) == 1


def test_names_that_are_no_text_stay_apart():
    came: list[DeliveredMessage] = []
    tap = arrivals(came.append)
    for key in (b"\xe4", b"\xf6"):
        frames = delivered(1, 1, b"body")
        frames[0] = frames[0].replace(b"\x02\xc3\xa9", b"\x02k" + key)
        assert all(tap.take(frame[0], frame, 7, len(frame) - 1) for frame in frames)

    assert [one.routing_key for one in came] == ["k\\xe4", "k\\xf6"]


def batch(number: int, ended: list[tuple[int, bool]]) -> Batch:
    parcels = [parcel_of("", "q", Basic.Properties(message_id=f"{number}-{at}"), b"") for at in range(number)]
    return Batch(parcels, lambda number, refused: ended.append((number, refused)))


def said(confirms: Confirms, *frames: object) -> None:
    for frame in frames:
        data = marshal(frame, 1)  # type: ignore[arg-type]
        assert confirms.take(data[0], data, 7, len(data) - 1)


async def test_each_message_gets_the_word_that_was_meant_for_it():
    confirms, ended = Confirms(), list[tuple[int, bool]]()
    first, second, third = batch(3, ended), batch(2, ended), batch(4, ended)
    for one in (first, second, third):
        confirms.expect(one)
    header = ContentHeader(body_size=1, properties=Basic.Properties(message_id="2-1"))

    said(confirms, Basic.Ack(2), Basic.Nack(7))
    said(confirms, Basic.Return(312, "NO_ROUTE", "", "q"), header, ContentBody(b"x"))
    said(confirms, Basic.Ack(8, multiple=True))

    assert (first.words, second.words) == (["stored"] * 3, ["stored", "unrouted"])
    assert third.words == ["stored", "refused", "stored", None]
    assert (first.over.done(), second.over.done(), third.over.done()) == (True, True, False)
    lost = ConnectionError("lost")
    confirms.lose(lost)
    assert third.words == ["stored", "refused", "stored", lost]
    assert ended == [(3, False), (2, False), (4, True)]
    assert not confirms.batches
    assert third.over.done()


async def test_a_body_goes_out_whole_where_the_broker_sets_no_limit(monkeypatch):
    socket = Socket()
    socket.tap = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setattr(outlet, "wire_of", lambda _: socket)
    unlimited = SimpleNamespace(number=1, max_content_size=-8)
    body = bytes(200_000)

    outlet.TappedOutlet(unlimited).hand_over(
        Batch([parcel_of("", "q", Basic.Properties(message_id="1"), body)], lambda *_: None)
    )

    frames, data = [], socket.written
    while data:
        consumed, _, frame = unmarshal(data)
        frames.append(frame)
        data = data[consumed:]
    assert [len(frame.value) for frame in frames if isinstance(frame, ContentBody)] == [131_064, 68_936]


async def test_a_return_that_fits_no_message_makes_none_of_them_stored():
    confirms, ended = Confirms(), list[tuple[int, bool]]()
    first, second = batch(2, ended), batch(1, ended)
    for one in (first, second):
        confirms.expect(one)
    header = ContentHeader(body_size=1, properties=Basic.Properties(message_id="nobody's"))

    said(confirms, Basic.Ack(1), Basic.Return(312, "NO_ROUTE", "", "q"), header, ContentBody(b"x"))
    said(confirms, Basic.Ack(3, multiple=True))

    assert first.words[0] == "stored"
    assert all(isinstance(word, ConnectionFailed) for word in (first.words[1], second.words[0]))
    assert first.over.done() and second.over.done()
    assert ended == [(2, False), (1, False)]


async def test_what_was_handed_over_is_not_kept_until_its_confirm():
    confirms, ended = Confirms(), list[tuple[int, bool]]()
    one = batch(2, ended)
    confirms.expect(one)

    assert not one.parcels
    said(confirms, Basic.Ack(2, multiple=True))
    assert one.words == ["stored", "stored"]
