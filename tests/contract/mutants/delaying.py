"""Mutants of publish delays."""

from dataclasses import replace
from math import inf

import messaging.delay
import messaging.prepare
import messaging.workers
from messaging.delay import judge_early
from messaging.message import Release, Retry
from messaging_memory.adapter import MemoryAdapter
from tests.contract.mutants.mutant import killed_by, patched


@killed_by(
    "a_delayed_message_is_never_early_and_hardly_late",
    "a_delayed_message_outlives_the_member_that_received_it",
)
def hands_out_what_comes_too_early():
    with patched(messaging.workers, judge_early=lambda *_: None):
        yield


@killed_by("a_delayed_message_is_retried_and_given_up_as_any_other")
def counts_a_delay_as_a_failure():
    def count(*given):
        early = judge_early(*given)
        return Retry(after=early.after) if isinstance(early, Release) else early

    with patched(messaging.workers, judge_early=count):
        yield


@killed_by("a_delay_that_cannot_be_kept_is_refused_before_anything_is_sent")
def publishes_any_delay():
    with patched(messaging.prepare, check_delay=lambda *_: None):
        yield


@killed_by("a_forged_publish_delay_holds_nothing_for_ever")
def holds_as_long_as_a_stranger_says():
    with patched(messaging.delay, LONGEST=inf):
        yield


@killed_by("a_delayed_message_is_retried_and_given_up_as_any_other")
def forgets_the_delay_of_a_dead_letter():
    publish = MemoryAdapter.publish

    async def mutated(self, messages):
        return await publish(
            self, [replace(one, message=replace(one.message, not_before=None)) for one in messages]
        )

    with patched(MemoryAdapter, publish=mutated):
        yield
