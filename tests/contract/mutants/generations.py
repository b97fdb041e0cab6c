"""Mutants of the change of a topic's partitions and order."""

from dataclasses import replace

from messaging import generations
from messaging.catalogue import Catalogue
from messaging.dispatch import Dispatcher
from messaging.generations import Subscriber
from messaging.message import Ack
from messaging_memory import MemoryAdapter
from tests.contract.mutants.mutant import killed_by, patched


@killed_by(
    "a_failing_key_holds_its_messages_of_the_next_generation",
    "a_backlog_in_two_generations_is_handled_in_order",
)
def reads_the_next_generation_too_early():
    async def at_once(self, spec):
        return True

    with patched(Subscriber, _may_start=at_once):
        yield


@killed_by("a_failing_key_holds_its_messages_of_the_next_generation")
def finishes_a_partition_that_still_holds_something():
    with patched(Dispatcher, held=lambda self, partition: ()):
        yield


@killed_by("order_holds_while_the_partitions_change")
def never_looks_for_a_new_generation():
    def known(self, topic):
        return self._kept[topic.name][0] if topic.name in self._kept else None

    with patched(Catalogue, declared=known):
        yield


@killed_by("a_backlog_in_two_generations_is_handled_in_order")
def begins_a_generation_without_its_groups():
    declare = generations._declare

    async def without(adapter, last, wanted):
        async def none():
            return []

        adapter.groups = none
        try:
            await declare(adapter, last, wanted)
        finally:
            del adapter.groups

    with patched(generations, _declare=without):
        yield


@killed_by("a_backlog_in_two_generations_is_handled_in_order")
def never_ends_the_former_generation():
    async def nothing(adapter, former, partitions):
        """No end marks."""

    with patched(generations, _mark=nothing):
        yield


@killed_by("two_operators_at_once_agree_on_the_next_generation")
def tells_of_a_generation_that_is_not_on_record():
    async def forgotten(self, topic):
        """Nothing is written down."""

    with patched(MemoryAdapter, begin_generation=forgotten):
        yield


@killed_by("a_group_that_comes_after_the_change_gets_what_follows")
def marks_the_end_of_a_former_generation_once_only():
    async def once(self, former, finished):
        """No more end marks."""

    with patched(Subscriber, _mark_again=once):
        yield


@killed_by("a_topic_without_order_changes_and_loses_nothing")
def shows_the_dead_letters_of_the_first_generation_only():
    def first(self, spec):
        return self._kept.get(spec.name, (spec,))[:1]

    async def refreshed(self, spec, *, at_once=False):
        return first(self, spec)

    with patched(Catalogue, refresh=refreshed):
        yield


@killed_by("a_program_may_describe_any_kept_generation_and_no_other")
def takes_every_description():
    look = Catalogue._look

    async def only(self, spec):
        try:
            return await look(self, spec)
        except generations.ConfigurationError:
            return tuple(await self._routing.of(spec.name).adapter.generations(spec)), 0.0

    with patched(Catalogue, _look=only):
        yield


@killed_by("an_unordered_topic_becomes_ordered")
def begins_every_generation_without_order():
    declare = generations._declare

    async def unordered(adapter, last, wanted):
        await declare(adapter, last, replace(wanted, ordered=False))

    with patched(generations, _declare=unordered):
        yield


@killed_by("order_begins_while_programs_run", "order_is_given_up_while_programs_run")
def keeps_the_order_that_the_program_describes():
    def described(self, group, spec):
        return replace(group, topic=spec)

    with patched(Catalogue, in_generation=described):
        yield


@killed_by("order_is_given_up_while_programs_run")
def waits_for_the_former_generation_whose_order_was_given_up():
    may_start = Subscriber._may_start

    async def last(self, spec):
        return spec.generation == 1 and await may_start(self, spec)

    with patched(Subscriber, _may_start=last):
        yield


@killed_by("a_straggler_of_the_former_generation_is_handled")
def leaves_the_former_generation_at_its_end():
    end_mark = Subscriber._end_mark

    async def left(self, spec, raw):
        outcome = await end_mark(self, spec, raw)
        if isinstance(outcome, Ack):
            self._dispatchers[spec.generation].stop()
        return outcome

    with patched(Subscriber, _end_mark=left):
        yield
