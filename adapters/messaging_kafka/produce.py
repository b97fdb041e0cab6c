"""The request that carries batches, and its answer, each written and read in one go.

A client of aiokafka sends it like one of its own. Those go through a schema field by field: for one message on its way
that took the processor longer than the message.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BytesIO

KEY, VERSION = 0, 7
"""Kafka protocol, "Produce": every release from 2.1 on takes this version."""
NO_TRANSACTION = -1
"""Kafka protocol, "Produce": the length of a transactional id that is not there."""
ALL_IN_SYNC = -1
"""Of the replicas: it is confirmed when all of them have it."""

Stored: TypeAlias = "tuple[int, int, int]"
"""Of a batch: its partition, an error code, the offset of its first record."""

_SHORT = Struct(">h")
_NUMBER = Struct(">i")
_HEADER = Struct(">hhih")
_BEGINNING = Struct(">hhii")
_BATCH = Struct(">ii")
_STORED = Struct(">ihqqq")


class Header:
    """What stands before a request."""

    __slots__ = ("_written",)

    def __init__(self, written: bytes) -> None:
        self._written = written

    def encode(self) -> bytes:
        return self._written


class AnswerHeader:
    """What stands before an answer."""

    __slots__ = ("correlation_id",)

    def __init__(self, correlation_id: int) -> None:
        self.correlation_id = correlation_id


class Produced:
    """The answer: what became of each batch."""

    __slots__ = ("topics",)

    def __init__(self, topics: list[tuple[str, list[Stored]]]) -> None:
        self.topics = topics

    @classmethod
    def decode(cls, stream: BytesIO) -> Produced:
        """Raises struct.error or ValueError for what is no answer; aiokafka closes the connection then."""
        data = stream.read()
        topics: list[tuple[str, list[Stored]]] = []
        (count,) = _NUMBER.unpack_from(data)
        at = _NUMBER.size
        for _ in range(count):
            (length,) = _SHORT.unpack_from(data, at)
            at += _SHORT.size
            topic = data[at : at + length].decode()
            at += length
            (partitions,) = _NUMBER.unpack_from(data, at)
            at += _NUMBER.size
            end = at + partitions * _STORED.size
            if end > len(data):
                raise ValueError("the answer ends too early")
            topics.append((topic, [stored[:3] for stored in _STORED.iter_unpack(data[at:end])]))
            at = end
        return cls(topics)


class Produce:
    """One batch for each of these partitions. Confirmed by all replicas in sync, within so many milliseconds."""

    RESPONSE_TYPE = Produced

    def __init__(self, timeout: int, topics: Sequence[tuple[str, Sequence[tuple[int, bytes]]]]) -> None:
        self._timeout = timeout
        self._topics = topics

    def __repr__(self) -> str:
        return f"Produce({', '.join(topic for topic, _ in self._topics)})"

    def prepare(self, versions: Any) -> Produce:  # noqa: ARG002  aiokafka asks it
        """The request for a broker that knows these versions: all do."""
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> Header:
        name = client_id.encode()
        return Header(_HEADER.pack(KEY, VERSION, correlation_id, len(name)) + name)

    def encode(self) -> bytes:
        parts = [_BEGINNING.pack(NO_TRANSACTION, ALL_IN_SYNC, self._timeout, len(self._topics))]
        for topic, partitions in self._topics:
            name = topic.encode()
            parts += (_SHORT.pack(len(name)), name, _NUMBER.pack(len(partitions)))
            for number, data in partitions:
                parts += (_BATCH.pack(number, len(data)), data)
        return b"".join(parts)

    def parse_response_header(self, stream: BytesIO) -> AnswerHeader:
        return AnswerHeader(*_NUMBER.unpack(stream.read(_NUMBER.size)))
