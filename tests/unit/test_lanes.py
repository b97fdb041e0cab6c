from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from messaging.lanes import Lanes
from tests.unit.scripted import ids, raw


def filled(*deliveries, ordered=True, window=100):
    lanes = Lanes(ordered=ordered, window=window)
    for delivery in deliveries:
        lanes.add([delivery])
    return lanes


def taken(lanes):
    found = []
    while (delivery := lanes.take()) is not None:
        found.append(delivery.message.id)
    return found


def test_one_delivery_of_a_key_is_started_at_a_time():
    lanes = filled(a1 := raw("a1", "a"), raw("a2", "a"), raw("b1", "b"))

    assert taken(lanes) == ["a1", "b1"]
    lanes.finish(a1)
    assert taken(lanes) == ["a2"]


def test_the_same_key_in_two_partitions_is_two_lanes():
    lanes = filled(raw("a1", "a", partition=1), raw("a2", "a", partition=2))

    assert taken(lanes) == ["a1", "a2"]


def test_without_a_key_or_without_order_nothing_waits_for_anything():
    assert taken(filled(raw("1"), raw("2"))) == ["1", "2"]
    assert taken(filled(raw("1", "a"), raw("2", "a"), ordered=False)) == ["1", "2"]


def test_an_empty_key_is_a_key():
    assert taken(filled(raw("1", ""), raw("2", ""))) == ["1"]


def test_a_success_lets_the_next_start_while_it_is_being_settled():
    lanes = filled(first := raw("1", "a"), raw("2", "a"))
    lanes.take()

    lanes.advance(first)

    assert taken(lanes) == ["2"]
    assert ids(lanes.started) == ["1", "2"] or set(ids(lanes.started)) == {"1", "2"}
    lanes.finish(first)
    assert ids(lanes.held) == ["2"]


def test_advancing_what_is_not_held_or_has_no_lane_changes_nothing():
    lanes = filled(one := raw("1"))
    lanes.take()

    lanes.advance(one)
    lanes.advance(raw("stranger", "a"))

    assert ids(lanes.held) == ["1"]


def test_a_parked_lane_waits_with_its_successors_and_counts_against_the_window_alone():
    lanes = filled(first := raw("1", "a"), raw("2", "a"), raw("3", "b"), window=3)
    lanes.take()

    lanes.park(first, 10)
    assert (lanes.parked, lanes.unparked, lanes.full) == (2, 1, set())
    lanes.add([raw("4", "a")])
    assert (lanes.parked, lanes.unparked, lanes.full) == (3, 1, {0})

    assert taken(lanes) == ["3"]
    assert lanes.next_due() == 10
    assert lanes.wake(9.9) == 0
    assert lanes.wake(10) == 1
    assert lanes.next_due() is None
    assert (lanes.parked, lanes.full) == (0, set())
    assert taken(lanes) == ["1"]


def test_a_parked_delivery_without_a_key_waits_alone():
    lanes = filled(one := raw("1"), raw("2"))
    lanes.take()

    lanes.park(one, 5)

    assert taken(lanes) == ["2"]
    assert (lanes.parked, lanes.unparked) == (1, 1)
    lanes.wake(5)
    assert taken(lanes) == ["1"]
    lanes.park(one, 7)
    lanes.finish(one)
    assert len(lanes) == 1
    assert lanes.next_due() is None


def test_what_leaves_before_it_started_is_never_started():
    lanes = filled(a := raw("1", "a"), b := raw("2"), raw("3", "a"))

    lanes.finish(a)
    lanes.finish(b)

    assert taken(lanes) == ["3"]


def test_a_lane_that_emptied_before_it_started_is_forgotten():
    lanes = filled(one := raw("1", "a"))

    lanes.finish(one)
    lanes.add([raw("2", "a")])

    assert taken(lanes) == ["2"]


def test_forgetting_a_stranger_is_a_no_op():
    lanes = filled(raw("1"))

    lanes.finish(raw("stranger"))

    assert ids(lanes.held) == ["1"]
    assert raw("stranger") not in lanes


def test_the_deliveries_of_some_partitions_are_listed_in_order():
    lanes = filled(raw("1", "a", partition=1), raw("2", "b", partition=2), raw("3", "a", partition=1))

    assert ids(lanes.of_partitions({1})) == ["1", "3"]


class LanesAgainstAModel(RuleBasedStateMachine):
    """The model keeps, per key, a plain list; it decides what may be started and what counts."""

    WINDOW = 3

    def __init__(self):
        super().__init__()
        self.lanes = Lanes(ordered=True, window=self.WINDOW)
        self.keys = {}
        self.started = set()
        self.advanced = set()
        self.until = {}
        self.now = 0
        self.number = 0
        self.order = []

    def key(self, delivery):
        key = delivery.message.key
        return (delivery.partition, key if key is not None else delivery)

    def leave(self, delivery):
        key = self.key(delivery)
        lane = self.keys[key]
        if lane and lane[0] is delivery:
            self.until.pop(key, None)
        lane.remove(delivery)
        if not lane:
            del self.keys[key]

    @rule(key=st.sampled_from([None, "a", "b", b"\xff"]), partition=st.integers(0, 1))
    def add(self, key, partition):
        self.number += 1
        delivery = raw(str(self.number), key, partition=partition)
        self.lanes.add([delivery])
        self.keys.setdefault(self.key(delivery), []).append(delivery)
        self.order.append(delivery)

    @rule()
    def take(self):
        startable = [
            lane[0]
            for key, lane in self.keys.items()
            if lane[0] not in self.started and key not in self.until
        ]
        delivery = self.lanes.take()
        assert (delivery is None) == (not startable)
        if delivery is not None:
            assert delivery in startable
            self.started.add(delivery)

    def pick(self, data, these):
        return data.draw(st.sampled_from(sorted(these, key=lambda one: int(one.message.id))))

    @property
    def running(self):
        return self.started - self.advanced

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def advance(self, data):
        delivery = self.pick(data, self.running)
        self.lanes.advance(delivery)
        if delivery.message.key is not None:
            self.leave(delivery)
            self.advanced.add(delivery)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), after=st.integers(0, 3))
    def park(self, data, after):
        delivery = self.pick(data, self.running)
        self.lanes.park(delivery, self.now + after)
        self.started.discard(delivery)
        self.until[self.key(delivery)] = self.now + after

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def finish(self, data):
        delivery = self.pick(data, self.order)
        self.lanes.finish(delivery)
        self.order.remove(delivery)
        self.started.discard(delivery)
        if delivery in self.advanced:
            self.advanced.discard(delivery)
        else:
            self.leave(delivery)

    @rule(passed=st.integers(0, 2))
    def wake(self, passed):
        self.now += passed
        due = [key for key, until in self.until.items() if until <= self.now]
        assert self.lanes.wake(self.now) == len(due)
        for key in due:
            del self.until[key]

    @invariant()
    def the_counts_match(self):
        parked = [one for key in self.until for one in self.keys[key]]
        assert self.lanes.parked == len(parked)
        assert self.lanes.unparked == len(self.order) - len(parked)
        assert list(self.lanes.held) == self.order
        assert set(self.lanes.started) == self.started
        assert self.lanes.full == {
            number for number in (0, 1) if sum(one.partition == number for one in parked) >= self.WINDOW
        }
        assert self.lanes.next_due() == min(self.until.values(), default=None)

    def teardown(self):
        for delivery in self.order:
            self.lanes.finish(delivery)
        assert len(self.lanes) == 0
        assert not self.lanes._by_key
        assert self.lanes.take() is None


LanesAgainstAModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLanesAgainstAModel = LanesAgainstAModel.TestCase
