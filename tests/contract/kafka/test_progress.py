"""What is kept of a partition with its committed position: pure, no broker."""

import random

import pytest

from messaging.adapter import RawDelivery
from messaging_kafka.brokers import Committed
from messaging_kafka.progress import METADATA_LIMIT, Progress, resume


def handed_out(progress: Progress, *offsets: int) -> None:
    for offset in offsets:
        entry = progress.take(offset)
        assert entry is not None
        entry.delivery = RawDelivery(None, position=str(offset))  # type: ignore[arg-type]


def again(progress: Progress, *, leaving: bool = False) -> Progress:
    return resume(progress.committed(leaving=leaving))


def test_the_watermark_is_the_first_record_that_is_not_done() -> None:
    progress = Progress(high=10)
    handed_out(progress, 10, 11, 12)

    progress.finish(11)
    assert progress.committed().offset == 10
    progress.finish(10)
    assert progress.committed().offset == 12
    progress.finish(12)
    assert progress.committed().offset == 13


def test_a_new_owner_repeats_only_what_was_not_done() -> None:
    progress = Progress(high=0)
    handed_out(progress, *range(10))
    for offset in (1, 2, 5, 6, 7, 9):
        progress.finish(offset)

    heir = again(progress, leaving=True)

    assert [offset for offset in range(12) if heir.take(offset) is not None] == [0, 3, 4, 8, 10, 11]


def test_a_gap_in_the_offsets_stops_nobody() -> None:
    """Markers of transactions and compaction leave gaps."""
    progress = Progress(high=0)
    handed_out(progress, 0, 5, 9)
    for offset in (0, 5, 9):
        progress.finish(offset)
    assert progress.committed().offset == 10


def test_what_was_deleted_before_it_was_handled_holds_nothing_back() -> None:
    progress = Progress(high=0)
    handed_out(progress, 0, 1, 2)
    progress.finish(2)
    heir = again(progress)

    assert heir.take(7) is not None

    assert list(heir.unfinished) == [7]


def test_what_was_deleted_is_committed_though_all_that_follows_is_done() -> None:
    progress = Progress(high=0)
    handed_out(progress, 0, 1, 2)
    progress.finish(2)
    heir = again(progress)
    assert heir.undone(0, 5) == 4

    assert heir.take(2) is None

    assert heir.passed(3)
    assert not heir.passed(3)
    assert heir.committed().offset == 3


def test_attempts_and_what_is_left_of_a_delay_are_kept() -> None:
    progress = Progress(high=3)
    handed_out(progress, 3, 4)
    progress.unfinished[3].attempt = 4
    progress.unfinished[3].due = 1_800_000_000.25

    heir = again(progress, leaving=True)

    entry = heir.take(3)
    assert entry is not None
    assert (entry.attempt, entry.due, entry.returns) == (4, 1_800_000_000.25, 0)


def test_a_crash_counts_as_a_return_and_a_hand_over_does_not() -> None:
    progress = Progress(high=0)
    handed_out(progress, 0)

    for _ in range(3):
        progress = again(progress, leaving=True)
        handed_out(progress, 0)
    assert progress.unfinished[0].returns == 0
    for _ in range(3):
        progress = again(progress)
        handed_out(progress, 0)
    assert progress.unfinished[0].returns == 3


def test_what_a_dead_member_may_have_read_is_under_suspicion_until_it_is_done() -> None:
    heir = again(Progress(high=7))
    assert heir.careful

    handed_out(heir, 7, 8)
    assert [entry.returns for entry in heir.unfinished.values()] == [1, 1]
    assert not again(heir, leaving=True).unfinished[7].alone
    heir.finish(7)
    heir.finish(8)
    handed_out(heir, 5000)
    assert heir.unfinished[5000].returns == 0
    assert not heir.careful


def test_the_mark_of_running_alone_survives_a_crash_only() -> None:
    progress = Progress(high=0)
    handed_out(progress, 0)
    progress.unfinished[0].alone = True

    assert again(progress).unfinished[0].alone
    assert not again(progress, leaving=True).unfinished[0].alone


def test_a_thousand_holes_in_a_million_offsets_fit() -> None:
    progress = Progress(high=1_000_000)
    holes = sorted(random.Random(7).sample(range(1_000_000), 1000))
    for offset in holes:
        progress.take(offset) if offset >= progress.high else progress.unfinished.setdefault(offset, _entry())

    position = progress.committed(leaving=True)
    heir = resume(position)

    assert len(position.metadata) <= METADATA_LIMIT
    assert list(heir.unfinished) == holes
    assert heir.committed(leaving=True) == position


def test_more_holes_than_fit_are_handled_again_and_none_is_lost() -> None:
    progress = Progress(high=0)
    handed_out(progress, *range(20_000))
    for offset in range(1, 20_000, 2):
        progress.unfinished[offset].attempt = 3
        progress.finish(offset)

    position = progress.committed(leaving=True)
    heir = resume(position)

    assert len(position.metadata) <= METADATA_LIMIT
    todo = {offset for offset in range(20_000) if heir.take(offset) is not None}
    assert todo >= set(range(0, 20_000, 2))


def test_unreadable_metadata_means_that_nothing_is_known() -> None:
    for written in ("", "?", "1!!!!", "9AAAA", "1" + "_" * 50, "another program's note"):
        heir = resume(Committed(5, written))
        assert heir.watermark == 5
        assert heir.take(5) is not None


def _entry():
    from messaging_kafka.progress import Entry

    return Entry()


def test_five_hundred_parked_messages_keep_their_attempts_and_delays() -> None:
    progress = Progress(high=0)
    handed_out(progress, *range(0, 5000, 10))
    for number, entry in enumerate(progress.unfinished.values()):
        entry.attempt = 2 + number % 7
        entry.due = 1_800_000_000 + number * 0.25

    heir = again(progress, leaving=True)

    kept = [(offset, entry.attempt, entry.due) for offset, entry in heir.unfinished.items()]
    assert kept == [(offset, entry.attempt, entry.due) for offset, entry in progress.unfinished.items()]


@pytest.mark.parametrize("spread", [0.5, 60.0, 300.0])
def test_a_thousand_failed_keys_keep_their_attempts_and_are_never_early(spread: float) -> None:
    """All that may be parked of a partition fits; where room is short, delays are rounded up."""
    chosen = random.Random(5)
    progress = Progress(high=0)
    handed_out(progress, *range(0, 20_000, 20))
    for entry in progress.unfinished.values():
        entry.attempt = chosen.randrange(2, 8)
        entry.due = 1_800_000_000 + chosen.uniform(0, spread)

    heir = again(progress, leaving=True)

    assert not progress.full
    assert list(heir.unfinished) == list(progress.unfinished)
    for offset, entry in progress.unfinished.items():
        assert heir.unfinished[offset].attempt == entry.attempt
        assert entry.due - 1e-3 <= heir.unfinished[offset].due <= entry.due + max(0.02, spread / 30)


def test_delays_are_exact_again_when_there_is_room() -> None:
    progress = Progress(high=0)
    handed_out(progress, *range(1000))
    for number, entry in enumerate(progress.unfinished.values()):
        entry.attempt, entry.due = 2 + number % 5, 1_800_000_000.25 + number * 7919 % 300
    again(progress)
    for offset in range(10, 1000):
        progress.finish(offset)
    for _ in range(5):
        heir = again(progress, leaving=True)

    assert [entry.due for entry in heir.unfinished.values()] == [
        entry.due for entry in progress.unfinished.values()
    ]


def test_a_full_room_stops_new_records_and_not_those_that_a_former_owner_left() -> None:
    progress = Progress(high=0)
    handed_out(progress, *range(0, 40_000_000, 40_000))
    for entry in progress.unfinished.values():
        entry.attempt = 3

    heir = again(progress)
    heir.committed()

    assert progress.full
    assert heir.crowded
    assert not heir.full
    for offset in list(heir.expected):
        handed_out(heir, offset)
    assert heir.full
    for offset in list(heir.unfinished)[500:]:
        heir.finish(offset)
    heir.committed()
    assert not heir.full


@pytest.mark.parametrize("limit", [0, 100, 200, 1000])
def test_a_broker_with_less_room_is_given_less(limit: int) -> None:
    progress = Progress(high=0)
    handed_out(progress, *range(3000))
    progress.finish(1)

    position = progress.committed(limit=limit)

    assert len(position.metadata) <= limit
    assert resume(position).watermark == 0
    assert progress.full
