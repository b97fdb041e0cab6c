"""Reading what other programs wrote: names of headers are bytes on the wire, and not every client writes UTF-8."""

import gzip
import struct

import pytest
from aiokafka.record.util import calc_crc32c

from messaging_kafka.library import BatchBuilder, Place
from messaging_kafka.source import Source

CRC_AT, CRC_ENDS = 17, 21


def batch(first: int, codec: int, *records: tuple[bytes, str]) -> bytes:
    """Records with these values and names of headers; the name `latin` is written as bytes that are no UTF-8."""
    builder = BatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for number, (value, name) in enumerate(records):
        assert builder.append(number, 1, None, value, [(name, b"x")]) is not None
    raw = bytes(builder.build()).replace(b"latin", b"l\xe4tin")
    if codec:
        raw = raw[:61] + gzip.compress(raw[61:])
        raw = raw[:CRC_ENDS] + struct.pack(">h", codec) + raw[CRC_ENDS + 2 :]
    raw = struct.pack(">qi", first, len(raw) - 12) + raw[12:]
    return raw[:CRC_AT] + struct.pack(">I", calc_crc32c(raw[CRC_ENDS:])) + raw[CRC_ENDS:]


@pytest.mark.parametrize("codec", [0, 1])
def test_a_header_whose_name_is_no_utf8_costs_no_record(codec: int) -> None:
    source = Source(Place("orders", 0), 0)
    source.answered(
        batch(0, codec, (b"a", "one"))
        + batch(1, codec, (b"b", "two"), (b"c", "latin"), (b"d", "three"))
        + batch(4, codec, (b"e", "four")),
        None,
    )

    first = source.read(2)
    records = first + source.read(9)

    assert [(one.offset, one.value) for one in records] == list(enumerate([b"a", b"b", b"c", b"d", b"e"]))
    assert [one.headers[0][0] for one in records] == ["one", "two", "l\ufffdtin", "three", "four"]
    assert source.position == 5
