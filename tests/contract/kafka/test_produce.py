"""The request that carries batches: as aiokafka writes it, and what a broker may answer."""

import struct
from io import BytesIO

import pytest
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7

from messaging_kafka.produce import Produce, Produced

TOPICS = [("orders", [(0, b"first"), (7, b"")]), ("größe", [(1, b"second")])]
ANSWER = ([("orders", [(0, 0, 17, -1, 0), (7, 3, -1, -1, -1)]), ("größe", [(1, 0, 2**40, 5, 1)])], 0)


def test_it_is_written_as_aiokafka_writes_it() -> None:
    request, model = Produce(2000, TOPICS), ProduceRequest_v7(None, -1, 2000, TOPICS)

    assert request.encode() == model.encode()
    assert request.build_request_header(5, "bus").encode() == model.build_request_header(5, "bus").encode()


def test_an_answer_tells_the_fate_of_each_batch() -> None:
    answer = Produced.decode(BytesIO(ProduceResponse_v7(*ANSWER).encode()))

    assert answer.topics == [("orders", [(0, 0, 17), (7, 3, -1)]), ("größe", [(1, 0, 2**40)])]


@pytest.mark.parametrize("missing", [5, 31, 34, 64, 90])
def test_an_answer_that_ends_too_early_is_none(missing: int) -> None:
    whole = ProduceResponse_v7(*ANSWER).encode()

    with pytest.raises((ValueError, struct.error)):
        Produced.decode(BytesIO(whole[:-missing]))
