"""Mutants of the portable layer: the dispatcher, its middleware, requests and what is checked before sending."""

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
from messaging.app import App
from messaging.bus import Bus
from messaging.codec import Codec
from messaging.dispatch import Dispatcher
from messaging.lanes import Lanes
from messaging.message import Ack, Delivery, Release, Retry, seconds
from messaging.middleware.retry import RetryPolicy
from messaging.prepare import Preparation
from messaging.publish import Publisher
from messaging.pull import Pull
from messaging.requests import Requester
from messaging.workers import Workers
from messaging_memory.adapter import MemoryAdapter
from messaging_memory.record import Record
from messaging_memory.settings import Settings
from messaging_memory.store import MemoryStore
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
    handle = Workers._handle

    async def swallow(self, raw):
        try:
            return await handle(self, raw)
        except asyncio.CancelledError:
            return Ack()

    with patched(Workers, _handle=swallow):
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
        binding(max_delay=lambda _: math.inf),
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

    original, first = Record.message, {}

    def remembered(record, topic):
        return first.setdefault(id(record.row), original(record, topic))

    with patched(messaging.workers, Delivery=sharing), patched(Record, message=remembered):
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


# --- requests ----------------------------------------------------------------------------------------------------


@killed_by("a_late_reply_reaches_nobody", "a_cancelled_request_leaves_nothing_behind")
def gives_a_late_reply_to_whoever_waits():
    take_in = Requester._take_in

    def anyone(self, reply):
        waiting = self._pending.get(reply.correlation_id or "")
        if waiting is None:
            for other in self._pending:
                take_in(self, replace(reply, correlation_id=other))
                return
            self.kept = reply
            return
        take_in(self, reply)

    request = Requester.request

    async def with_the_last(self, name, send, within):
        async def sent(address, correlation_id):
            await send(address, correlation_id)
            kept = vars(self).pop("kept", None)
            if kept is not None:
                take_in(self, replace(kept, correlation_id=correlation_id))

        return await request(self, name, sent, within)

    with patched(Requester, _take_in=anyone, request=with_the_last):
        yield


@killed_by("a_request_is_answered")
def sends_no_reply_that_is_none():
    answered = messaging.subscription._answered

    def silent(next):
        async def handle(delivery):
            outcome = await answered(next)(delivery)
            return Ack() if isinstance(outcome, Ack) and outcome.reply.value is None else outcome

        return handle

    with patched(messaging.subscription, _answered=silent):
        yield


@killed_by("a_late_reply_reaches_nobody")
def waits_for_a_reply_for_ever():
    request = Requester.request

    async def patient(self, name, send, within):
        return await request(self, name, send, 1000.0)

    with patched(Requester, request=patient):
        yield


@killed_by("a_request_that_expired_is_not_answered")
def answers_requests_that_have_expired():
    with leaving_out("expiring"):
        yield


@killed_by("an_error_of_the_responder_reaches_the_requester")
def keeps_a_failed_request_as_a_dead_letter():
    original = messaging.subscription.answering

    def answering(*arguments, **options):
        answer = original(*arguments, **options)

        def mutated(delivery, outcome):
            _, reply = answer(delivery, outcome)
            return outcome, reply

        return mutated

    with patched(messaging.subscription, answering=answering):
        yield


@killed_by("an_error_of_the_responder_reaches_the_requester")
def keeps_the_responders_error_to_itself():
    original = messaging.subscription.answering

    def answering(*arguments, **options):
        answer = original(*arguments, **options)

        def mutated(delivery, outcome):
            settled, reply = answer(delivery, outcome)
            return settled, reply if isinstance(outcome, Ack) else None

        return mutated

    with patched(messaging.subscription, answering=answering):
        yield


@killed_by("responders_share_the_requests")
def asks_every_responder():
    original = messaging.subscription.Plan.bind
    names = iter(range(1000))

    def alone(self, *arguments):
        made = original(self, *arguments)
        if made.answer is not None:
            group = replace(made.subscription.group, name=f"responders-{next(names)}")
            made.subscription = replace(made.subscription, group=group)
        return made

    consumer = MemoryAdapter.consumer

    def declared(self, subscription, ownership):
        spec = subscription.group
        self._broker.create_group(self._declarer.topic(spec.topic), spec.name)
        return consumer(self, subscription, ownership)

    with patched(messaging.subscription.Plan, bind=alone), patched(MemoryAdapter, consumer=declared):
        yield


# --- idempotency -------------------------------------------------------------------------------------------------


@killed_by("one_id_is_handled_once", "members_know_what_the_others_have_handled")
def remembers_no_key():
    async def forget(self, key, fence, *, result, ttl):
        await MemoryStore.clear(self, key, fence)
        return True

    with patched(MemoryStore, complete=forget):
        yield


@killed_by("what_did_not_succeed_is_handled_again")
def remembers_what_did_not_succeed():
    async def keep(self, key, fence):
        await MemoryStore.complete(self, key, fence, result=None, ttl=60)

    with patched(MemoryStore, clear=keep):
        yield


@killed_by("a_copy_that_comes_meanwhile_waits")
def fails_a_copy_that_comes_meanwhile():
    with patched(messaging.middleware.idempotency, Release=lambda after: Retry(after=after)):
        yield


@killed_by("each_group_handles_for_itself")
def shares_keys_between_groups():
    original = messaging.subscription.idempotent

    def shared(store, *, scope, **options):
        return original(store, scope=scope.rpartition(":")[0], **options)

    with patched(messaging.subscription, idempotent=shared):
        yield


@killed_by("one_id_for_two_payloads_is_an_error")
def takes_another_payload_for_the_same():
    begin = MemoryStore.begin
    with patched(
        MemoryStore, begin=lambda self, key, *, digest, lease: begin(self, key, digest="", lease=lease)
    ):
        yield


@killed_by("an_idempotent_responder_repeats_its_reply")
def keeps_no_reply():
    original = messaging.subscription.idempotent

    def silent(store, *, encode_reply=None, **options):
        return original(store, **options)

    with patched(messaging.subscription, idempotent=silent):
        yield


@killed_by("idempotency_needs_a_store")
def is_idempotent_without_a_store():
    original = messaging.subscription.Plan.missing

    def overlook(self, bus):
        return [reason for reason in original(self, bus) if "idempotent" not in reason]

    with patched(messaging.subscription.Plan, missing=overlook):
        yield


@killed_by("a_cancelled_publish_breaks_nothing")
def publishes_again_when_it_is_cancelled():
    publish = Publisher.publish

    async def again(self, messages, within):
        try:
            return await publish(self, messages, within)
        except asyncio.CancelledError:
            for _ in range(2):
                await self._adapter.publish(messages)
            raise

    with patched(Publisher, publish=again):
        yield


@killed_by("a_content_type_tells_the_format")
def guesses_the_format():
    decode = Codec.decode

    def guess(self, body, content_type):
        return decode(self, body, "application/json" if body.startswith(b"{") else content_type)

    with patched(Codec, decode=guess):
        yield


# --- what is checked before anything is sent ---------------------------------------------------------------------


@killed_by("a_payload_of_the_wrong_type_is_refused")
def sends_a_payload_of_any_type():
    encode = Codec.encode

    def anything(self, payload):
        return b"1" if isinstance(payload, str) else encode(self, payload)[0], "application/json"

    with patched(Codec, encode=anything):
        yield


@killed_by("a_header_that_cannot_be_carried_is_refused")
def sends_any_header():
    def write(headers):
        return {str(name): str(value) for name, value in headers.items()}

    with patched(messaging.prepare, check_headers=write):
        yield


@killed_by("a_message_that_is_too_large_is_refused")
def cuts_what_is_too_large():
    messages = Preparation.messages

    def cut(self, topic, payloads, options):
        return [replace(made, body=made.body[:1000]) for made in messages(self, topic, payloads, options)]

    with patched(Preparation, messages=cut):
        yield


@killed_by("an_ordered_message_needs_a_key")
def gives_an_ordered_message_some_key():
    def some_key(self, spec, message):
        return 0

    with patched(Preparation, _turn=some_key):
        yield


@killed_by("a_closed_bus_says_so")
def lets_a_closed_bus_be_used():
    async def stay_open(self):
        asyncio.get_running_loop().create_task(self.adapter.close())

    with patched(Bus, _close=stay_open):
        yield


@killed_by("two_subscriptions_to_the_same_are_refused")
def lets_subscriptions_steal_from_each_other():
    with patched(App, _family=lambda self: [self]):
        yield


@killed_by("an_unknown_option_is_refused")
def overlooks_an_unknown_option():
    original = vars(Settings)["from_url"].__func__

    def lenient(cls, url, options):
        return original(cls, url.replace("colour=blue", ""), options)

    with patched(Settings, from_url=classmethod(lenient)):
        yield


@killed_by("an_illegal_name_is_refused")
def takes_any_name():
    with (
        patched(messaging.message, check_topic=lambda name: "legal"),
        patched(messaging.names, check_group=lambda name: "legal", check_topic=lambda name: "legal"),
    ):
        yield
