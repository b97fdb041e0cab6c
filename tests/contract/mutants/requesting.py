"""Mutants of the portable layer: requests and idempotency."""

import asyncio
from dataclasses import replace

import messaging.message
import messaging.middleware.idempotency
import messaging.names
import messaging.prepare
import messaging.settlement
import messaging.subscription
import messaging.workers
from messaging.codec import Codec
from messaging.message import Ack, Retry
from messaging.publish import Publisher
from messaging.requests import Requester
from messaging_memory.adapter import MemoryAdapter
from messaging_memory.store import MemoryStore
from tests.contract.mutants.handling import leaving_out
from tests.contract.mutants.mutant import killed_by, patched

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


@killed_by("a_reply_that_is_too_large_fails_the_request_at_once")
def keeps_to_itself_that_a_reply_is_too_large():
    with patched(messaging.settlement, too_large=lambda reply, error: None):
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
        self._broker.create_group(self._topology.topic(spec.topic), spec.name)
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
