"""What a broker tells of a topic's id."""

from messaging_kafka.topic_ids import NO_ID, TopicIds

FIRST, SECOND = b"1" * 16, b"2" * 16


def test_a_broker_that_is_behind_does_not_bring_a_former_id_back() -> None:
    known = TopicIds()
    known.told("orders", FIRST)
    known.told("orders", SECOND)
    known.told("orders", FIRST)
    assert known.of("orders") == SECOND


def test_a_broker_that_knows_no_ids_tells_nothing() -> None:
    known = TopicIds()
    known.told("orders", NO_ID)
    assert known.of("orders") is None
