"""What is told of records of which nobody knows whether a broker stored them."""

from messaging.errors import PublishError, PublishUncertain
from messaging_kafka.exchange import Batch, fate_of
from messaging_kafka.library import Place


def test_what_a_former_leader_may_have_stored_is_told_so_although_it_was_sent_to_no_other() -> None:
    batch = Batch(Place("orders", 3), [0], b"")
    batch.doubtful = True
    batch.outcome = PublishError("not sent: it has no leader")

    fate = fate_of(batch, "kafka:9092")

    assert isinstance(fate, PublishUncertain)
    assert str(fate).startswith("its broker ceased to lead partition 3 and may have stored it")
