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


async def test_a_leader_that_has_not_begun_to_lead_yet_is_asked_again() -> None:
    """Who is named as the leader in the same epoch before and after it refused cannot have stored anything."""
    broker = StandIn(answers=[Errors.NotLeaderForPartitionError] * 4, late=True)

    assert await Writer(broker).write([parcel("1")]) == [0]  # type: ignore[arg-type]
    assert broker.sent == 5


async def test_a_batch_is_not_sent_to_a_third_broker_that_may_store_it() -> None:
    broker = StandIn(answers=[Errors.NotLeaderForPartitionError] * 4)

    (fate,) = await Writer(broker).write([parcel("1")])  # type: ignore[arg-type]

    assert isinstance(fate, PublishUncertain)
    assert broker.sent == 2


async def test_what_did_not_reach_the_leader_is_sent_to_the_next() -> None:
    broker = StandIn(answers=[Errors.NodeNotReadyError(), Errors.NodeNotReadyError()])

    assert await Writer(broker).write([parcel("1")]) == [0]  # type: ignore[arg-type]


async def test_a_leader_is_waited_for_once_and_not_by_each_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ELECTED_WITHIN", 0.3)
    broker = StandIn(unled=3)
    writer = Writer(broker)  # type: ignore[arg-type]
    assert await writer.write([parcel("1")]) == [0]
    broker.unled = 1000

    (fate,) = await writer.write([parcel("2")])
    looked = broker.unled
    (at_once,) = await writer.write([parcel("3")])

    assert [type(fate), type(at_once)] == [PublishError, PublishError]
    assert "has no leader" in str(at_once)
    assert looked - broker.unled == 1
    broker.unled = 0
    (stored,) = await writer.write([parcel("4")])
    assert isinstance(stored, int)


async def test_what_no_broker_has_taken_is_surely_not_stored() -> None:
    broker = StandIn(answers=[Errors.TopicAuthorizationFailedError])

    (fate,) = await Writer(broker).write([parcel("1")])  # type: ignore[arg-type]

    assert isinstance(fate, PublishError)
    assert not isinstance(fate, PublishUncertain)


async def test_what_came_to_a_disk_that_failed_may_be_stored() -> None:
    broker = StandIn(answers=[Errors.KafkaStorageError])

    (fate,) = await Writer(broker).write([parcel("1")])  # type: ignore[arg-type]

    assert isinstance(fate, PublishUncertain)


async def test_what_is_too_long_for_one_request_goes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "REQUEST_BYTES", 250)
    broker = StandIn()

    fates = await Writer(broker).write([parcel("x" * 100, number) for number in range(3)])  # type: ignore[arg-type]

    assert fates == [0, 0, 0]
    assert broker.sent == 3
