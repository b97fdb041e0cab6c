"""Mutants of what happens when members leave, die or freeze, and of what operators are told."""

import asyncio
from contextlib import suppress
from dataclasses import replace

from messaging.adapter import DONE
from messaging.dispatch import Dispatcher
from messaging.errors import ConnectionFailed
from messaging.message import Ack, Receipt, Reject, Retry
from messaging.publish import Publisher
from messaging.pull import Pull
from messaging.requests import Requester
from messaging.routing import Broker
from messaging_memory.consumer import MemoryConsumer
from messaging_memory.group import Group
from messaging_memory.replies import Replier
from messaging_redis.consumer import SharedConsumer
from tests.contract.mutants.mutant import killed_by, patched

settle = MemoryConsumer.settle


@killed_by("what_a_killed_member_was_giving_up_is_kept")
def gives_a_message_up_before_its_copy_is_stored():
    async def too_early(self, settlements):
        async def store(entries):
            await asyncio.sleep(0.05)
            if not self._connection.dead:
                self._member.held.update(entries)
                await settle(self, copies)

        copies = [one for one in settlements if isinstance(one.outcome, Retry | Reject)]
        others = iter(await settle(self, [one for one in settlements if one not in copies]))
        if copies:
            entries = {one.delivery: self._member.held.pop(one.delivery) for one in copies}
            self.storing = asyncio.create_task(store(entries))
        return [DONE if one in copies else next(others) for one in settlements]

    with patched(MemoryConsumer, settle=too_early):
        yield


@killed_by("a_group_that_comes_and_goes_misses_nothing")
def forgets_what_waits_when_the_last_member_leaves():
    leave = Group.leave

    def forget(self, member, reason, *, counted=False):
        left = leave(self, member, reason, counted=counted)
        if not self.members:
            self.cursors[:] = self.topic.starts("latest")
        return left

    with patched(Group, leave=forget):
        yield


@killed_by("a_group_that_comes_and_goes_misses_nothing")
def begins_again_with_the_first_member():
    join = Group.join

    def again(self, member):
        if not self.members:
            self.cursors[:] = self.topic.starts("earliest")
        join(self, member)

    with patched(Group, join=again):
        yield


@killed_by("what_is_left_unsettled_by_hand_goes_back_uncounted")
def counts_what_is_left_unsettled_by_hand():
    hand_out = Pull._hand_out

    async def counted(self, delivery):
        try:
            return await hand_out(self, delivery)
        except asyncio.CancelledError:
            return Retry("left")

    with patched(Pull, _hand_out=counted):
        yield


@killed_by("what_is_left_unsettled_by_hand_goes_back_uncounted")
def acknowledges_what_is_left_unsettled_by_hand():
    hand_out = Pull._hand_out

    async def settled(self, delivery):
        try:
            return await hand_out(self, delivery)
        except asyncio.CancelledError:
            return Ack()

    with patched(Pull, _hand_out=settled):
        yield


@killed_by("a_publish_without_time_claims_nothing")
def claims_what_it_had_no_time_to_send():
    publish = Publisher.publish

    async def claim(self, messages, within):
        if within < 0.001:
            return [Receipt(one.message.id) for one in messages]
        return await publish(self, messages, within)

    with patched(Publisher, publish=claim):
        yield


@killed_by("a_requester_that_starts_again_gets_only_its_own_replies")
def gives_the_replies_of_a_requester_to_its_successor():
    take_in = Requester._take_in

    def anyone(self, reply):
        waiting = next(iter(self._pending), reply.correlation_id)
        take_in(self, replace(reply, correlation_id=waiting))

    with (
        patched(Requester, _take_in=anyone),
        patched(Replier, address=lambda self, member: f"{self._prefix}shared"),
    ):
        yield


# --- what operators are told -------------------------------------------------------------------------------------


def telling(change):
    """A broker that tells something else of its groups."""
    info = Group.info
    return patched(Group, info=lambda self, topic: change(info(self, topic)))


@killed_by("what_waits_in_a_group_can_be_told")
def tells_a_wrong_lag():
    with telling(lambda info: replace(info, lag=info.lag + 1)):
        yield


@killed_by("what_waits_in_a_group_can_be_told")
def tells_of_no_members():
    with telling(lambda info: replace(info, members=0)):
        yield


@killed_by("what_waits_in_a_group_can_be_told")
def tells_of_no_dead_letters():
    with telling(lambda info: replace(info, dead_letters=0)):
        yield


@killed_by("what_waits_in_a_group_can_be_told")
def counts_nothing():
    health = Dispatcher.health

    def blank(self, broker):
        return replace(health(self, broker), acked=0, released=0, retried=0, rejected=0)

    with patched(Dispatcher, health=blank):
        yield


@killed_by("what_waits_in_a_group_can_be_told")
def is_never_seen_receiving():
    health = Dispatcher.health

    def waiting(self, broker):
        return replace(health(self, broker), receiving=False, held=1)

    with patched(Dispatcher, health=waiting):
        yield


# --- on a real broker --------------------------------------------------------------------------------------------


@killed_by(
    "a_frozen_member_loses_its_messages_and_spoils_nothing",
    "a_woken_member_starts_nothing_that_others_have_handled",
    broker="redis",
)
def waits_for_a_frozen_member_for_ever():
    async def nothing(self, limit):
        return []

    with patched(SharedConsumer, _take_over=nothing):
        yield


@killed_by("a_broker_that_is_not_there_is_named", broker="redis")
def does_not_name_the_broker_that_is_not_there():
    open = Broker.open

    async def nameless(self, within):
        try:
            await open(self, within)
        except ConnectionFailed:
            raise ConnectionFailed("it did not work") from None

    with patched(Broker, open=nameless):
        yield


@killed_by("a_broker_that_is_not_there_is_named", broker="redis")
def shows_the_password_of_a_broker_that_is_not_there():
    open = Broker.open

    async def talkative(self, within):
        try:
            await open(self, within)
        except ConnectionFailed as error:
            raise ConnectionFailed(f"{error} at {self.url}") from None

    with patched(Broker, open=talkative):
        yield


@killed_by("a_broker_that_is_not_there_is_named", "wrong_credentials_are_told_at_once", broker="redis")
def opens_without_a_broker():
    open = Broker.open

    async def careless(self, within):
        with suppress(ConnectionFailed):
            await open(self, within)

    with patched(Broker, open=careless):
        yield
