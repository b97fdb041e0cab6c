"""Mutants of the portable layer: the dispatcher and its middleware."""

import asyncio
import math
from contextlib import contextmanager, suppress
from dataclasses import replace

import messaging.message
import messaging.middleware.idempotency
import messaging.names
import messaging.prepare
import messaging.subscription
import messaging.workers
import messaging_memory.group
from messaging.dispatch import Dispatcher
from messaging.lanes import Lanes
from messaging.message import Ack, Delivery, Release, Retry, seconds
from messaging.middleware.retry import RetryPolicy
from messaging.pull import Pull
from messaging.workers import Workers
from messaging_memory.adapter import MemoryAdapter
from tests.contract.mutants.mutant import killed_by, patched


def leaving_out(name):
    """A chain of middleware without this one."""
    return patched(messaging.subscription, **{name: lambda *_, **__: lambda handle: handle})


@contextmanager
def binding(**changes):
    """Every subscription is bound with something else than it asked for."""
    original = messaging.subscription.Binding

    def changed(**values):
        made = original(**values)
        for name, change in changes.items():
            setattr(made, name, change(getattr(made, name)))
        return made

    with patched(messaging.subscription, Binding=changed):
        yield


# --- flow --------------------------------------------------------------------------------------------------------


@killed_by("never_more_handlers_run_than_asked_for")
def ignores_the_limit_of_concurrency():
    with binding(subscription=lambda one: replace(one, concurrency=one.concurrency * 3)):
        yield


@killed_by("never_more_handlers_run_than_asked_for", "keys_are_handled_side_by_side")
def runs_one_handler_at_a_time():
    with binding(subscription=lambda one: replace(one, concurrency=1)):
        yield


@killed_by("a_stop_waits_for_the_handlers_that_run")
def cancels_handlers_at_once():
    with binding(grace=lambda _: 0.0):
        yield


@killed_by("a_stop_waits_for_the_handlers_that_run")
def starts_what_waits_while_it_stops():
    async def drain_all(self, receiver):
        receiver.cancel()
        deadline = self._clock.monotonic() + self._binding.grace
        await self._until(lambda: not len(self._lanes), deadline)
        self._workers.stop()
        for delivery in list(self._workers.running):
            self._workers.interrupt(delivery)
        await self._until(lambda: not self._lanes.started, deadline + 5)

    with patched(Dispatcher, _drain=drain_all):
        yield


@killed_by("a_stop_cancels_what_does_not_end_in_time", "nothing_is_acknowledged_before_its_handler_has_ended")
def swallows_cancellation():
    make = Workers.__init__

    def made(self, binding, *args, **kwargs):
        handle = binding.handler

        async def swallow(delivery):
            try:
                return await handle(delivery)
            except asyncio.CancelledError:
                return Ack()

        make(self, replace(binding, handler=swallow), *args, **kwargs)

    with patched(Workers, __init__=made):
        yield


@killed_by("a_subclass_of_ack_acknowledges")
def gives_back_what_a_subclass_of_ack_acknowledges():
    conclude = Dispatcher._conclude

    def mutated(self, delivery, outcome):
        own = isinstance(outcome, Ack) and type(outcome) is not Ack
        conclude(self, delivery, Release() if own else outcome)

    with patched(Dispatcher, _conclude=mutated):
        yield


@killed_by("two_apps_of_one_bus_end_separately")
def ends_all_apps_of_a_bus_together():
    stop, make, made = Dispatcher.stop, Dispatcher.__init__, []

    def stop_all(self):
        for other in made:
            stop(other)

    def remember(self, *arguments, **options):
        make(self, *arguments, **options)
        made.append(self)

    with patched(Dispatcher, stop=stop_all, __init__=remember):
        yield


# --- order -------------------------------------------------------------------------------------------------------


@killed_by("messages_of_one_key_are_handled_in_publish_order", "an_empty_key_is_a_key")
def runs_one_key_twice_at_once():
    original = Lanes.__init__

    def unordered(self, *, ordered, window):
        original(self, ordered=False, window=window)

    with patched(Lanes, __init__=unordered):
        yield


@killed_by("a_failing_key_does_not_stall_other_keys")
def stalls_all_keys_with_one():
    take = Lanes.take
    with patched(Lanes, take=lambda self: None if self.parked else take(self)):
        yield


@killed_by("a_failing_message_keeps_its_successors_behind_it", "a_release_lets_no_successor_overtake")
def parks_a_message_without_its_successors():
    def park(self, delivery, until):
        self.advance(delivery)
        asyncio.get_running_loop().call_later(0.2, self.finish, delivery)

    with patched(Lanes, park=park):
        yield


@killed_by("a_redriven_message_waits_its_turn")
def runs_a_redriven_message_beside_its_key():
    add = Lanes.add

    def beside(self, deliveries):
        for delivery in deliveries:
            ordered, self.ordered = self.ordered, self.ordered and "-r" not in delivery.position
            add(self, [delivery])
            self.ordered = ordered

    with patched(Lanes, add=beside):
        yield


@killed_by("a_group_may_stop_a_key_rather_than_skip_a_message")
def skips_a_message_rather_than_stop_its_key():
    original = messaging.subscription.retrying
    with patched(messaging.subscription, retrying=lambda policy, **_: original(policy)):
        yield


# --- failures ----------------------------------------------------------------------------------------------------


@killed_by("a_dead_letter_lets_its_key_go_on")
def stops_a_key_at_a_dead_letter():
    advance, finish, advanced = Lanes.advance, Lanes.finish, set()

    def note(self, delivery):
        advanced.add(delivery)
        advance(self, delivery)

    def stop(self, delivery):
        if delivery in advanced or delivery.message.key is None:
            finish(self, delivery)

    with patched(Lanes, advance=note, finish=stop):
        yield


@killed_by("failing_messages_do_not_stall_the_others")
def waits_for_a_retry_in_the_handler():
    original = messaging.subscription.retrying

    def waiting(policy, **options):
        made = original(policy, **options)

        def middleware(next):
            handle = made(next)

            async def mutated(delivery):
                outcome = await handle(delivery)
                if isinstance(outcome, Retry):
                    await asyncio.sleep(seconds(outcome.after or 0.0))
                return outcome

            return mutated

        return middleware

    with patched(messaging.subscription, retrying=waiting):
        yield


@killed_by(
    "a_delay_longer_than_may_be_held_is_a_dead_letter",
    "a_policy_longer_than_may_be_held_is_refused_at_start",
    "a_long_delay_is_kept_or_refused_but_never_shortened",
)
def clamps_what_is_longer_than_it_can_wait():
    capabilities = vars(MemoryAdapter)["capabilities"].fget

    def bounded(self):
        return replace(capabilities(self), max_hold=5.0, max_delay=5.0)

    with (
        patched(MemoryAdapter, capabilities=property(bounded)),
        patched(messaging.subscription.Plan, missing=lambda self, bus: []),
        binding(max_delay=lambda _: math.inf, max_hold=lambda _: math.inf),
    ):
        yield


@killed_by("a_message_is_tried_as_often_as_the_policy_says", "a_dead_letter_is_the_whole_message_and_why")
def retries_for_ever():
    original = messaging.subscription.retrying

    def endless(policy, **options):
        return original(replace(policy, attempts=1000), **options)

    with patched(messaging.subscription, retrying=endless):
        yield


@killed_by(
    "a_message_is_tried_as_often_as_the_policy_says", "a_handler_that_fails_twice_succeeds_on_attempt_three"
)
def gives_up_one_attempt_early():
    original = messaging.subscription.retrying

    def impatient(policy, **options):
        return original(replace(policy, attempts=max(1, policy.attempts // 2)), **options)

    with patched(messaging.subscription, retrying=impatient):
        yield


@killed_by("an_exception_that_deserves_no_retry_gets_none")
def retries_what_deserves_none():
    with patched(RetryPolicy, retries=lambda self, error: True):
        yield


@killed_by("a_long_delay_is_kept_or_refused_but_never_shortened", "a_policy_says_how_long_to_wait")
def takes_the_policys_word_over_the_handlers():
    original = messaging.subscription.retrying

    def deaf(policy, **options):
        made = original(policy, **options)

        def middleware(next):
            handle = made(next)

            async def mutated(delivery):
                outcome = await handle(delivery)
                return Retry(outcome.reason, after=0.01) if isinstance(outcome, Retry) else outcome

            return mutated

        return middleware

    with patched(messaging.subscription, retrying=deaf):
        yield


@killed_by("an_outcome_may_be_returned_or_raised")
def ignores_an_outcome_that_is_returned():
    original = messaging.subscription.concluded
    with patched(messaging.subscription, concluded=lambda result: original(None)):
        yield


@killed_by("headers_changed_by_a_handler_reach_nobody_else")
def shares_headers_between_attempts():
    def sharing(payload, message, headers, *rest):
        return Delivery(payload, message, message.headers, *rest)

    original, first = messaging_memory.group.message_of, {}

    def remembered(row, *rest):
        return first.setdefault(id(row), original(row, *rest))

    with patched(messaging.workers, Delivery=sharing), patched(messaging_memory.group, message_of=remembered):
        yield


@killed_by("a_handler_that_takes_too_long_has_failed")
def ignores_a_timeout():
    with leaving_out("timing_out"):
        yield


@killed_by("a_handler_that_takes_too_long_has_failed")
def takes_a_timeout_for_a_release():
    original = messaging.subscription.timing_out

    def released(seconds, **options):
        made = original(seconds, **options)

        def middleware(next):
            handle = made(next)

            async def mutated(delivery):
                with suppress(TimeoutError):
                    return await handle(delivery)
                return Release()

            return mutated

        return middleware

    with patched(messaging.subscription, timing_out=released):
        yield


@killed_by("an_expired_message_is_never_handled", "a_message_that_expires_while_it_waits_is_not_tried_again")
def handles_what_has_expired():
    with leaving_out("expiring"):
        yield


@killed_by("an_expired_message_becomes_a_dead_letter_where_that_is_asked")
def drops_what_has_expired():
    original = messaging.subscription.expiring
    with patched(messaging.subscription, expiring=lambda _, **options: original("drop", **options)):
        yield


@killed_by("a_message_may_be_settled_by_hand")
def settles_by_hand_with_an_ack():
    settle = Pull.settle
    with patched(Pull, settle=lambda self, delivery, outcome: settle(self, delivery, Ack())):
        yield


@killed_by("a_second_settlement_changes_nothing")
def settles_a_second_time():
    settle = Pull.settle

    async def again(self, delivery, outcome):
        if getattr(delivery, "native", None) == "settled":
            await self._bus.publish(self._topic, delivery.payload)
        await settle(self, delivery, outcome)
        delivery.native = "settled"

    with patched(Pull, settle=again):
        yield
