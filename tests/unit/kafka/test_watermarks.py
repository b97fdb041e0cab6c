"""Owners of a partition come, go and die: what one committed is all that the next knows (1, 2, 3)."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from messaging_kafka.brokers import Committed
from messaging_kafka.progress import METADATA_LIMIT, Progress, resume
from tests.unit.scripted import raw

RECORDS = 58


class Watermarks(RuleBasedStateMachine):
    """One partition with gaps in its offsets, read by one owner after the other."""

    def __init__(self):
        super().__init__()
        self.offsets = [offset for offset in range(RECORDS) if offset % 7 != 3]
        self.committed = Committed(0, "")
        self.done: set[int] = set()
        """What was settled, committed or not."""
        self.safe: set[int] = set()
        """What was settled when it was last committed."""
        self.attempts: dict[int, int] = {}
        self.safe_attempts: dict[int, int] = {}
        self.begin()

    def begin(self):
        self.progress = resume(self.committed)
        self.position = self.committed.offset
        self.attempts = dict(self.safe_attempts)
        self.held: set[int] = set()

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.held)))

    @precondition(lambda self: self.position < RECORDS)
    @rule(count=st.integers(1, 8))
    def read(self, count):
        for offset in [offset for offset in self.offsets if offset >= self.position][:count]:
            self.position = offset + 1
            entry = self.progress.take(offset)
            if entry is None:
                assert offset in self.safe, f"record {offset} was never settled, and is skipped"
            else:
                assert offset not in self.safe, f"record {offset} was settled and committed, and comes again"
                assert entry.attempt == self.attempts.get(offset, 1)
                assert entry.returns >= 0
                entry.delivery = raw(str(offset))
                self.held.add(offset)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data):
        offset = self.pick(data)
        self.held.remove(offset)
        self.progress.finish(offset)
        self.done.add(offset)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), due=st.floats(0, 1e6))
    def fail(self, data, due):
        """A retry that is held: the failure is recorded in the progress."""
        offset = self.pick(data)
        entry = self.progress.unfinished[offset]
        entry.attempt += 1
        entry.due = due
        self.attempts[offset] = entry.attempt

    @rule(leaving=st.booleans(), dies=st.booleans())
    def commit(self, leaving, dies):
        self.committed = self.progress.committed(leaving=leaving)
        self.safe = set(self.done)
        self.safe_attempts = dict(self.attempts)
        if leaving or dies:
            self.begin()

    @rule()
    def die(self):
        """What was not committed is forgotten with its owner."""
        self.done = set(self.safe)
        self.begin()

    @invariant()
    def the_watermark_is_below_all_that_is_not_settled(self):
        waiting = [offset for offset in self.offsets if offset not in self.done]
        if waiting:
            assert self.progress.watermark <= waiting[0]

    @invariant()
    def what_is_committed_fits(self):
        assert len(self.progress.committed().metadata) <= METADATA_LIMIT

    def teardown(self):
        """In the end somebody reads and finishes all: every record was settled."""
        while self.position < RECORDS:
            self.read(RECORDS)
        for offset in sorted(self.held):
            self.progress.finish(offset)
            self.done.add(offset)
        assert self.done >= set(self.offsets)
        assert self.progress.watermark == self.offsets[-1] + 1


Watermarks.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWatermarks = Watermarks.TestCase


def test_delays_that_end_where_time_begins_are_committed_and_resumed():
    progress = resume(Committed(0, ""))
    for offset, due in enumerate([1.0, 1e-45, -5.0, 2.0]):
        entry = progress.take(offset)
        assert entry is not None
        entry.attempt, entry.due = 2, due

    again = resume(resume(progress.committed()).committed())

    assert [entry.attempt for entry in again.unfinished.values()] == [2, 2, 2, 2]
    assert [round(entry.due, 2) for entry in again.unfinished.values()] == [1.0, 0.01, 0.01, 2.0]


@given(st.integers(0, 2**62), st.text(max_size=60) | st.from_regex(r"1[A-Za-z0-9_-]{0,60}", fullmatch=True))
def test_whatever_stands_beside_an_offset_never_skips_the_record_there(offset, metadata):
    """Metadata of another program, or cut off: at most something is handled again."""
    progress = resume(Committed(offset, metadata))

    assert isinstance(progress, Progress)
    assert progress.watermark >= offset
