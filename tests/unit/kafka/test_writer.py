"""Writing without marks: what is told where a leader moves, and how much goes in one request."""

import pytest

from messaging.errors import PublishError, PublishUncertain
from messaging_kafka import exchange
from messaging_kafka.library import Errors
from messaging_kafka.records import Parcel
from messaging_kafka.writer import Writer
from tests.unit.kafka.test_once import StandIn


def parcel(id: str, partition: int = 0) -> Parcel:
    return Parcel("orders", partition, b"k", id.encode(), [])


async def test_what_a_former_leader_may_have_stored_is_uncertain_where_no_other_takes_it() -> None:
    broker = StandIn(answers=[Errors.NotLeaderForPartitionError, Errors.NotLeaderForPartitionError])

    (fate,) = await Writer(broker).write([parcel("1")])  # type: ignore[arg-type]

    assert isinstance(fate, PublishUncertain)
    assert "has no leader" in str(fate)


async def test_what_no_broker_has_taken_is_surely_not_stored() -> None:
    broker = StandIn(answers=[Errors.TopicAuthorizationFailedError])

    (fate,) = await Writer(broker).write([parcel("1")])  # type: ignore[arg-type]

    assert isinstance(fate, PublishError)
    assert not isinstance(fate, PublishUncertain)


async def test_what_is_too_long_for_one_request_goes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "REQUEST_BYTES", 250)
    broker = StandIn()

    fates = await Writer(broker).write([parcel("x" * 100, number) for number in range(3)])  # type: ignore[arg-type]

    assert fates == [0, 0, 0]
    assert broker.sent == 3
