"""A group of Kafka over time: members come, crash, are busy, and let go late of what they shall give up."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from messaging_kafka.assignor import Claim, deal

PARTITIONS = range(5)
RETRIES = range(5, 8)
KINDS = (PARTITIONS, RETRIES)
EVERY = set(PARTITIONS) | set(RETRIES)


class Member:
    def __init__(self):
        self.owned = set()
        self.leaving = set()
        """What it shall give up, and still works on."""
        self.generation = -1
        self.busy = False

    @property
    def claim(self):
        return Claim(tuple(sorted(self.owned)), self.generation, self.busy)


class Group(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.members = {}
        self.names = 0
        self.generation = 0

    def some(self, data, names):
        return data.draw(st.sampled_from(sorted(names)))

    def rebalance(self):
        """All that live join again, as Kafka makes them; each keeps what it has until it let go of it."""
        if not self.members:
            return
        self.generation += 1
        before = {name: set(member.owned) for name, member in self.members.items()}
        shares = deal({name: member.claim for name, member in self.members.items()}, KINDS)
        for name, share in shares.items():
            member = self.members[name]
            assert before[name] <= share.units, "a unit was taken from a member that still worked on it"
            assert share.give_up <= share.units
            member.owned, member.leaving, member.generation = (
                set(share.units),
                set(share.give_up),
                self.generation,
            )

    @rule()
    def join(self):
        self.names += 1
        self.members[f"member-{self.names}"] = Member()
        self.rebalance()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave_or_crash(self, data):
        del self.members[self.some(data, self.members)]
        self.rebalance()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def change_how_busy_one_is(self, data):
        member = self.members[self.some(data, self.members)]
        member.busy = not member.busy
        self.rebalance()

    @precondition(lambda self: any(member.leaving for member in self.members.values()))
    @rule(data=st.data())
    def let_go(self, data):
        name = self.some(data, [name for name, member in self.members.items() if member.leaving])
        member = self.members[name]
        member.owned -= member.leaving
        self.rebalance()

    @invariant()
    def a_unit_has_one_owner_at_most(self):
        owners = Counter(unit for member in self.members.values() for unit in member.owned)
        assert all(count == 1 for count in owners.values()), owners

    @invariant()
    def every_unit_has_an_owner(self):
        assert not self.members or set().union(*(member.owned for member in self.members.values())) == EVERY

    def teardown(self):
        for _ in range(2 * len(EVERY)):
            leaving = next((member for member in self.members.values() if member.leaving), None)
            if leaving is None:
                break
            leaving.owned -= leaving.leaving
            self.rebalance()
        assert not any(member.leaving for member in self.members.values()), "the group does not come to rest"
        for kind in KINDS:
            takers = [member for member in self.members.values() if not member.busy]
            if kind is PARTITIONS or not takers:
                takers = list(self.members.values())
            counts = [len(member.owned & set(kind)) for member in takers]
            assert max(counts, default=0) - min(counts, default=0) <= 1, counts


Group.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestGroup = Group.TestCase
