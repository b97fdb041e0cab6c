"""Mutants of how messages are handed out and settled, at the memory adapter's consumer."""

import asyncio
from dataclasses import replace

from messaging.adapter import DONE, Settlement
from messaging.message import Ack, Reject, Release, Retry
from messaging_memory.consumer import MemoryConsumer
from messaging_memory.group import Group
from messaging_memory.ownership import OwnedGroup
from messaging_memory.record import Record
from messaging_memory.shared import SharedGroup
from tests.contract.mutants.mutant import killed_by, patched

receive, settle, close = MemoryConsumer.receive, MemoryConsumer.settle, MemoryConsumer.close


def receiving(change):
    """A consumer whose every delivery goes through `change` first."""

    async def mutated(self, limit, wait, paused=()):
        deliveries = list(await receive(self, limit, wait, paused))
        for delivery in deliveries:
            change(delivery)
        return deliveries

    return patched(MemoryConsumer, receive=mutated)


def _headers(delivery):
    """As they are on the wire."""
    return Record(delivery.native, delivery.partition).headers


def settling(change):
    """A consumer that settles something else than it was told."""

    async def mutated(self, settlements):
        return await settle(self, [change(one) for one in settlements])

    return patched(MemoryConsumer, settle=mutated)


@killed_by("nothing_is_acknowledged_before_its_handler_has_ended", "a_stop_cancels_what_does_not_end_in_time")
def acknowledges_before_the_handler():
    async def early(self, limit, wait, paused=()):
        deliveries = await receive(self, limit, wait, paused)
        await settle(self, [Settlement(delivery, Ack()) for delivery in deliveries])
        return deliveries

    with patched(MemoryConsumer, receive=early):
        yield


@killed_by("what_was_handled_does_not_come_again")
def never_acknowledges():
    async def forget(self, settlements):
        others = [one for one in settlements if not isinstance(one.outcome, Ack)]
        await settle(self, others)
        return [DONE] * len(settlements)

    with patched(MemoryConsumer, settle=forget):
        yield


@killed_by("what_a_killed_member_held_goes_to_another", "an_attempt_survives_a_killed_member")
def loses_what_a_killed_member_held():
    returned = Group._returned

    def lose(self, member, deliveries, *, counted):
        entries = returned(self, member, deliveries, counted=counted)
        return [] if counted else entries

    with patched(Group, _returned=lose):
        yield


@killed_by("what_waits_in_a_member_that_stops_goes_back_at_once")
def loses_what_a_stopping_member_held():
    async def lose(self):
        if self._member is not None:
            self._member.held.clear()
        await close(self)

    with patched(MemoryConsumer, close=lose):
        yield


@killed_by(
    "a_release_is_never_counted",
    "a_cancelled_handler_is_not_a_failure",
    "a_stop_cancels_what_does_not_end_in_time",
)
def counts_a_release_as_a_failure():
    with settling(lambda one: replace(one, outcome=Retry()) if isinstance(one.outcome, Release) else one):
        yield


@killed_by("deployments_bring_no_message_nearer_to_the_dead_letters")
def counts_a_departure_as_a_failure():
    async def fail(self):
        if self._member is not None:
            held = list(self._member.held)
            await settle(self, [Settlement(delivery, Retry(), failure="{}") for delivery in held])
        await close(self)

    with patched(MemoryConsumer, close=fail):
        yield


@killed_by(
    "a_handler_that_fails_twice_succeeds_on_attempt_three", "an_attempt_survives_the_member_that_failed"
)
def forgets_attempts():
    def forget(delivery):
        delivery.attempt = 1

    with receiving(forget):
        yield


@killed_by("a_retry_is_never_early_and_hardly_late", "a_long_delay_is_kept_or_refused_but_never_shortened")
def clamps_a_delay():
    def clamp(one):
        return replace(one, after=min(one.after, 0.15)) if isinstance(one.outcome, Retry) else one

    with settling(clamp):
        yield


@killed_by("a_policy_says_how_long_to_wait", "a_delayed_retry_outlives_the_member_that_failed")
def ignores_a_delay():
    with settling(lambda one: replace(one, after=0.0)):
        yield


@killed_by("a_retry_is_never_early_and_hardly_late")
def is_late():
    with settling(lambda one: replace(one, after=one.after + 2 if one.after else 0.0)):
        yield


@killed_by("a_release_waits_as_long_as_it_says")
def ignores_the_delay_of_a_release():
    with settling(lambda one: replace(one, after=0.0) if isinstance(one.outcome, Release) else one):
        yield


@killed_by("a_retried_message_is_the_same_message", "a_message_is_tried_as_often_as_the_policy_says")
def loses_the_id_on_a_retry():
    def rename(delivery):
        if delivery.attempt > 1:
            delivery.message = replace(delivery.message, id=f"{delivery.message.id}-{delivery.attempt}")

    with receiving(rename):
        yield


@killed_by("a_retried_message_is_the_same_message")
def loses_the_expiry_on_a_retry():
    def forget(delivery):
        if delivery.attempt > 1:
            delivery.message = replace(delivery.message, expires_at=None)

    with receiving(forget):
        yield


@killed_by("a_slow_member_holds_no_more_than_its_prefetch")
def ignores_the_prefetch():
    async def greedy(self, limit, wait, paused=()):
        return await receive(self, 1000, wait, paused)

    with patched(MemoryConsumer, receive=greedy):
        yield


@killed_by("a_slow_handler_keeps_its_message")
def does_not_extend_leases():
    async def pretend(self, deliveries, seconds):
        return [True] * len(deliveries)

    with patched(MemoryConsumer, extend=pretend):
        yield


@killed_by("a_delivery_whose_lease_has_ended_belongs_to_another")
def takes_the_settlement_of_a_lost_delivery():
    with patched(MemoryConsumer, _refused=lambda self, delivery: DONE), patched(Group, settle=_settle_all):
        yield


def _settle_all(self, member, settlements):
    return [
        DONE if one.delivery not in member.held else self._settle_other(member, one) for one in settlements
    ]


@killed_by("a_delivery_whose_lease_has_ended_belongs_to_another")
def ends_no_lease():
    with patched(Group, _look_at_leases=lambda self: None):
        yield


@killed_by("a_new_owner_has_a_larger_fence")
def fences_nothing():
    def forget(delivery):
        delivery.fence = 7

    with receiving(forget):
        yield


@killed_by("a_release_lets_no_successor_overtake")
def lets_successors_overtake_a_release():
    def overtaken(self, delivery, entry, after, member):
        del member.held[delivery]

        def put_back():
            self._put_back([entry])
            self.wake()

        asyncio.get_running_loop().call_later(after, put_back)
        return DONE

    with patched(OwnedGroup, _release=overtaken):
        yield


@killed_by("a_failing_message_keeps_its_successors_behind_it")
def lets_successors_overtake_a_failure():
    def overtaken(self, delivery, entry, after, member):
        del member.held[delivery]

        def put_back():
            self._put_back([entry])
            self.wake()

        asyncio.get_running_loop().call_later(after, put_back)
        return DONE

    with patched(OwnedGroup, _retry=overtaken):
        yield


@killed_by("order_holds_while_members_come_and_go")
def loses_what_came_back():
    put_back = OwnedGroup._put_back

    with patched(OwnedGroup, _put_back=lambda self, entries: put_back(self, [])):
        yield


@killed_by("no_key_is_handled_by_two_members_at_once")
def gives_all_partitions_to_the_first_member():
    def greedy(self):
        for number, owned in enumerate(self.owned):
            if owned.owner is None and self.members:
                self._give(number, self.members[0])
        self.wake()

    with patched(OwnedGroup, rebalance=greedy):
        yield


@killed_by("members_of_a_group_share_its_messages", "a_member_that_joins_takes_part")
def lets_only_the_first_member_take():
    take = SharedGroup.take

    def first_only(self, member, limit):
        return take(self, member, limit) if member is self.members[0] else []

    with patched(SharedGroup, take=first_only):
        yield


@killed_by("a_message_that_kills_its_process_ends_as_a_dead_letter_alone")
def lets_a_poison_message_take_its_neighbours():
    isolate = MemoryConsumer.isolate

    async def mark_all(self, delivery):
        marked = await isolate(self, delivery)
        for other in list(self._member.held):
            self._member.group.isolate(self._member, other)
        return marked

    with patched(MemoryConsumer, isolate=mark_all):
        yield


@killed_by("a_message_that_kills_its_process_ends_as_a_dead_letter_alone")
def guards_against_no_poison():
    def forget(delivery):
        delivery.returns = 0
        delivery.guard = "none"

    with receiving(forget):
        yield


@killed_by("killed_neighbours_are_no_poison")
def takes_every_returned_message_for_poison():
    def suspect(delivery):
        if delivery.returns >= 3:
            delivery.guard = "tripped"

    with receiving(suspect):
        yield


@killed_by("order_survives_a_killed_member")
def skips_what_a_killed_member_had_of_a_key():
    returned = Group._returned

    def skip(self, member, deliveries, *, counted):
        entries = returned(self, member, deliveries, counted=counted)
        return entries[:1] if counted else entries

    with patched(Group, _returned=skip):
        yield


@killed_by("what_cannot_be_decoded_is_a_dead_letter_and_stops_nobody")
def handles_the_undecodable_in_a_hot_loop():
    def loop(one):
        return replace(one, outcome=Release()) if getattr(one.outcome, "cause", "") == "deserialize" else one

    with settling(loop):
        yield


@killed_by("a_rejected_message_is_one_dead_letter", "an_outcome_may_be_returned_or_raised")
def drops_what_is_rejected():
    with settling(lambda one: replace(one, outcome=Ack()) if isinstance(one.outcome, Reject) else one):
        yield


@killed_by("a_dead_letter_is_the_whole_message_and_why", "a_redriven_message_may_die_again")
def forgets_why_a_message_died():
    with settling(lambda one: replace(one, failure=None)):
        yield


@killed_by("a_forged_counter_starts_no_loop")
def counts_on_from_a_forged_attempt():
    def believe(delivery):
        forged = _headers(delivery).get("messaging-attempt")
        if forged == "-5" and delivery.attempt == 1:
            delivery.attempt = -5

    with receiving(believe):
        yield


@killed_by("a_forged_counter_kills_no_healthy_message")
def believes_a_forged_counter():
    def believe(delivery):
        if _headers(delivery).get("returns") == "99":
            delivery.guard = "tripped"

    with receiving(believe):
        yield


@killed_by("headers_of_another_program_are_text")
def drops_the_headers_of_other_programs():
    def drop(delivery):
        if "ce_id" not in _headers(delivery):
            delivery.message = replace(delivery.message, headers={})

    with receiving(drop):
        yield


@killed_by("an_ordered_topic_takes_a_message_without_a_key")
def drops_a_message_without_a_key():
    async def drop(self, limit, wait, paused=()):
        deliveries = await receive(self, limit, wait, paused)
        return [one for one in deliveries if one.message.key is not None]

    with patched(MemoryConsumer, receive=drop):
        yield


@killed_by("forged_control_headers_have_no_control")
def believes_a_forged_attempt():
    def believe(delivery):
        forged = _headers(delivery).get("messaging-attempt")
        if forged is not None:
            delivery.attempt = int(forged)

    with receiving(believe):
        yield


@killed_by("a_bare_message_is_handled", "a_bare_message_keeps_its_id_through_its_failures")
def leaves_a_foreign_message_without_a_name_of_its_own():
    def unname(delivery):
        if "ce_id" not in _headers(delivery):
            delivery.message = replace(
                delivery.message, id=f"foreign-{id(delivery)}" if delivery.message.body else ""
            )

    with receiving(unname):
        yield
