"""Mutants of the portable layer: what is checked before anything is sent."""

import asyncio
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
from messaging.prepare import Preparation
from messaging_memory.settings import MemorySettings
from tests.contract.mutants.mutant import killed_by, patched


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
    original = vars(MemorySettings)["from_url"].__func__

    def lenient(cls, url, options):
        return original(cls, url.replace("colour=blue", ""), options)

    with patched(MemorySettings, from_url=classmethod(lenient)):
        yield


@killed_by("an_illegal_name_is_refused")
def takes_any_name():
    with (
        patched(messaging.message, check_topic=lambda name: "legal"),
        patched(messaging.names, check_group=lambda name: "legal", check_topic=lambda name: "legal"),
    ):
        yield
