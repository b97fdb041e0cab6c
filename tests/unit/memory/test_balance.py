"""Members come, go and die; the owners of partitions are checked after every step."""

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from messaging.adapter import Hold, SettleError, Settlement
from messaging.errors import Closed
from messaging.message import Ack, Message, Release
from messaging.testing import VirtualClock
from messaging_memory.group import Member
from messaging_memory.log import TopicLog
from messaging_memory.ownership import OwnedGroup
from messaging_memory.record import row_of

PARTITIONS = 5


class Balance(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.topic = TopicLog("orders", partitions=PARTITIONS, ordered=True, retention=None, history=0)
        self.group = OwnedGroup(self.topic, "billing", cursors=[0] * PARTITIONS, clock=VirtualClock())
        self.topic.groups["billing"] = self.group
        self.hand_overs = []
        self.gone = []
        self.published = 0
        self.handled = {partition: [] for partition in range(PARTITIONS)}
        self.fences = [0] * PARTITIONS

    async def on_revoke(self, partitions, deadline):
        raise AssertionError("the consumer asks, and there is none")

    def on_lost(self, deliveries, reason):
        assert reason == "the partition was handed over"

    def pick(self, data, things):
        return data.draw(st.sampled_from(things))

    @rule()
    def join(self):
        def revoke(numbers, done):
            self.hand_overs.append((member, done))

        member = Member(self.group, topic="orders", lease=30, ownership=self, revoke=revoke)
        self.group.join(member)

    @precondition(lambda self: self.group.members)
    @rule(data=st.data(), dies=st.booleans())
    def leave(self, data, dies):
        member = self.pick(data, self.group.members)
        held = list(member.held)
        self.group.leave(member, Closed("left"), counted=dies)
        self.gone.append((member, held))

    @precondition(lambda self: self.hand_overs)
    @rule(data=st.data())
    def finish_a_hand_over(self, data):
        hand_over = self.pick(data, self.hand_overs)
        self.hand_overs.remove(hand_over)
        hand_over[1]()

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def publish(self, partition):
        self.published += 1
        message = Message(id=str(self.published), topic="orders", body=b"", key="k")
        row, _ = row_of(message, 0.0, None, inf)
        self.topic.partitions[partition].append(row)
        self.group.wake()

    @precondition(lambda self: self.group.members)
    @rule(data=st.data(), limit=st.integers(1, 3))
    def take(self, data, limit):
        member = self.pick(data, self.group.members)
        for delivery in self.group.take(member, limit):
            assert delivery.partition in member.partitions - member.revoking
            assert delivery.fence >= self.fences[delivery.partition]
            self.fences[delivery.partition] = delivery.fence

    @precondition(lambda self: any(member.held for member in self.group.members))
    @rule(data=st.data(), back=st.booleans())
    def settle_the_oldest_or_release_all(self, data, back):
        member = self.pick(data, [member for member in self.group.members if member.held])
        partition = self.pick(data, sorted({delivery.partition for delivery in member.held}))
        mine = [delivery for delivery in member.held if delivery.partition == partition]
        if back:
            for result in self.group.settle(member, [Settlement(delivery, Release()) for delivery in mine]):
                assert isinstance(result, Hold)  # a successor may be here: nothing leaves on its own
        else:
            self.group.settle(member, [Settlement(mine[0], Ack())])
            self.handled[partition].append(int(mine[0].message.id))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def a_late_settlement_is_refused(self, data):
        member, held = self.pick(data, self.gone)
        for result in self.group.settle(member, [Settlement(delivery, Ack()) for delivery in held]):
            assert isinstance(result, SettleError)

    @invariant()
    def a_partition_has_one_owner_at_most(self):
        owners = [owned.owner for owned in self.group.owned]
        for number, owner in enumerate(owners):
            having = [member for member in self.group.members if number in member.partitions]
            assert having == ([] if owner is None else [owner])
        assert not self.group.members or None not in owners
        assert all(member.revoking <= member.partitions for member in self.group.members)

    @invariant()
    def a_message_has_one_holder_at_most(self):
        held = [delivery.message.id for member in self.group.members for delivery in member.held]
        assert len(held) == len(set(held))

    @invariant()
    def each_partition_is_handled_in_order(self):
        for handled in self.handled.values():
            assert handled == sorted(set(handled))

    def teardown(self):
        while self.hand_overs:
            self.hand_overs.pop()[1]()
        if not self.group.members:
            self.join()
        sizes = [len(member.partitions) for member in self.group.members]
        assert sum(sizes) == PARTITIONS
        assert max(sizes) - min(sizes) <= 1
        assert not any(member.revoking for member in self.group.members)
        for member in list(self.group.members):
            self.group.leave(member, Closed("left"))
        while self.hand_overs:
            self.hand_overs.pop()[1]()
        self.join()
        for member in self.group.members:
            for delivery in self.group.take(member, 10_000):
                self.handled[delivery.partition].append(int(delivery.message.id))
        self.each_partition_is_handled_in_order()
        assert sum(map(len, self.handled.values())) == self.published


Balance.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBalance = Balance.TestCase
