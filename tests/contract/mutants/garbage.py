"""Mutants of what becomes of garbage."""

from messaging.codec import Codec
from messaging.errors import DecodeError
from messaging.lanes import Lanes
from messaging.message import Ack
from messaging.workers import Workers
from tests.contract.mutants.mutant import killed_by, patched


@killed_by("garbage_is_handled_or_given_up_with_a_reason")
def ends_at_what_it_cannot_read():
    decode = Codec.decode

    def mutated(self, body, content_type):
        try:
            return decode(self, body, content_type)
        except DecodeError as error:
            raise RuntimeError from error

    with patched(Codec, decode=mutated):
        yield


@killed_by("garbage_is_handled_or_given_up_with_a_reason", "garbage_stops_no_ordered_topic")
def drops_what_it_cannot_read():
    make = Workers.__init__

    def made(self, *args, conclude, **kwargs):
        def concluded(delivery, outcome):
            dropped = getattr(outcome, "cause", "") == "deserialize"
            conclude(delivery, Ack() if dropped else outcome)

        make(self, *args, conclude=concluded, **kwargs)

    with patched(Workers, __init__=made):
        yield


@killed_by("garbage_stops_no_ordered_topic")
def never_starts_what_has_no_key():
    add = Lanes._add_to_lane

    def mutated(self, delivery):
        if delivery.message.key is not None:
            add(self, delivery)

    with patched(Lanes, _add_to_lane=mutated):
        yield
