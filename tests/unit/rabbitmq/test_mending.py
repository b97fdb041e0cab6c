"""What aiormq reads itself of foreign messages is what came, or all of it that can be read."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from messaging_rabbitmq.wire import FrameReader
from tests.contract.rabbitmq import by_hand
from tests.contract.rabbitmq.by_hand import MICROSECONDS, long, nested, short

TABLE = long(b"\x01aS" + long(b"A") + b"\x01bT" + MICROSECONDS)
AROUND = marshal(ContentBody(b"before"), 1), marshal(ContentBody(b"behind"), 1)


async def passed(frame: bytes) -> bytes:
    """What comes of it between two others."""
    reader = FrameReader(asyncio.get_running_loop())
    reader.feed_data(AROUND[0] + frame + AROUND[1])
    reader.feed_eof()
    whole = await reader.read()
    assert whole.startswith(AROUND[0]) and whole.endswith(AROUND[1])
    return whole[len(AROUND[0]) : -len(AROUND[1])]


@pytest.mark.parametrize(
    "read",
    [
        Basic.Deliver("tag", 7, True, "orders", "é"),
        Basic.GetOk(7, True, "orders", "é", 3),
        Basic.GetEmpty(),
        ContentHeader(body_size=3, properties=Basic.Properties(headers={"a": [1, None]}, message_id="id")),
    ],
)
async def test_what_can_be_read_is_left_as_it_is(read) -> None:
    assert await passed(marshal(read, 1)) == marshal(read, 1)


@pytest.mark.parametrize(
    ("method", "mended"),
    [
        (
            Basic.Deliver("KEY", 7, True, "orders", "KEY"),
            Basic.Deliver("k\\xe9y", 7, True, "orders", "k\\xe9y"),
        ),
        (Basic.GetOk(7, True, "orders", "KEY", 3), Basic.GetOk(7, True, "orders", "k\\xe9y", 3)),
        (Basic.Return(312, "NO_ROUTE", "", "KEY"), Basic.Return(312, "NO_ROUTE", "", "k\\xe9y")),
    ],
)
async def test_names_that_are_no_text_are_written_out(method, mended) -> None:
    _, _, read = unmarshal(await passed(marshal(method, 1).replace(b"KEY", b"k\xe9y")))

    assert isinstance(read, Frame)
    assert dict(read) == dict(mended)


@pytest.mark.parametrize(
    ("flags", "fields", "kept"),
    [
        (1 << 7 | 1 << 6, short(b"id") + MICROSECONDS, {}),
        (1 << 13 | 1 << 7, nested(1500) + short(b"id"), {"headers": None}),
        (1 << 13 | 1 << 7, TABLE + short(b"id"), {"headers": {"a": "A"}}),
        (1 << 10 | 1 << 7, short(b"gr\xfcn") + short(b"id"), {"correlation_id": "gr\\xfcn"}),
    ],
)  # fmt: skip
async def test_properties_that_cannot_be_read_are_left_out(flags: int, fields: bytes, kept) -> None:
    _, channel, header = unmarshal(await passed(by_hand.header(1, 9, flags, fields)))

    assert isinstance(header, ContentHeader)
    assert (channel, header.body_size, header.properties.message_id) == (1, 9, "id")
    assert {name: getattr(header.properties, name) for name in kept} == kept


@given(st.data())
def test_a_changed_header_is_always_one_that_can_be_read(data):
    properties = Basic.Properties(content_type="a/b", headers={"k": 7, "l": "w"}, message_id="id")
    frame = bytearray(marshal(ContentHeader(body_size=9, properties=properties), 1))
    place, value = data.draw(st.integers(7 + 12, len(frame) - 2)), data.draw(st.integers(0, 255))
    frame[place] = value

    _, _, header = unmarshal(asyncio.run(passed(bytes(frame))))

    assert isinstance(header, ContentHeader)
    assert header.body_size == 9
