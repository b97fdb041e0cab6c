"""Mutants of how messages, groups, dead letters and replies are kept, at the memory adapter."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from math import inf

import messaging_memory.publisher
import messaging_memory.topology
from messaging.adapter import GONE
from messaging.dead_letters import DeadLetters
from messaging.errors import TopicNotFound
from messaging.failed_keys import FailedKeys
from messaging.message import Receipt
from messaging_memory.adapter import MemoryAdapter
from messaging_memory.broker import Broker
from messaging_memory.dead_letters import MemoryDeadLetters
from messaging_memory.log import TopicLog
from messaging_memory.publisher import Publisher
from messaging_memory.record import row_of
from messaging_memory.replies import MemoryInbox, Replier
from messaging_memory.topology import TopologyKeeper
from tests.contract.mutants.mutant import killed_by, patched

publish = MemoryAdapter.publish


def publishing(change):
    """An adapter that publishes something else than it was told."""

    async def mutated(self, messages):
        return await publish(self, [change(one) for one in messages])

    return patched(MemoryAdapter, publish=mutated)


def with_message(outgoing, **changes):
    return replace(outgoing, message=replace(outgoing.message, **changes))


@killed_by("every_message_arrives_whole_and_once", "a_burst_of_publishes_loses_nothing")
def duplicates_in_silence():
    async def twice(self, messages):
        await publish(self, messages[-1:])
        return await publish(self, messages)

    with patched(MemoryAdapter, publish=twice):
        yield


@killed_by("every_message_arrives_whole_and_once")
def loses_one_message_in_fifty():
    count = 0

    async def lossy(self, messages):
        nonlocal count
        count += len(messages)
        if count % 50 == 0:
            return [Receipt(one.message.id) for one in messages]
        return await publish(self, messages)

    with patched(MemoryAdapter, publish=lossy):
        yield


@killed_by("a_confirmed_message_needs_its_publisher_no_more", "what_a_killed_publisher_was_confirmed_arrives")
def confirms_before_it_has_stored():
    async def later(self, messages):
        async def store():
            await asyncio.sleep(0.05)
            if self._open and self._connection.alive:
                await publish(self, messages)

        self.pending = asyncio.create_task(store())
        return [Receipt(one.message.id) for one in messages]

    with patched(MemoryAdapter, publish=later):
        yield


@killed_by("headers_arrive_as_they_were_written", "every_message_arrives_whole_and_once")
def drops_headers():
    with publishing(lambda one: with_message(one, headers={})):
        yield


@killed_by("headers_arrive_as_they_were_written")
def cuts_long_headers():
    def cut(one):
        return with_message(one, headers={name: value[:4096] for name, value in one.message.headers.items()})

    with publishing(cut):
        yield


@killed_by("headers_arrive_as_they_were_written")
def folds_the_case_of_headers():
    def fold(one):
        return with_message(one, headers={name.lower(): value for name, value in one.message.headers.items()})

    with publishing(fold):
        yield


@killed_by("any_bytes_are_a_body")
def mends_bytes_that_are_no_text():
    def mend(one):
        return with_message(one, body=one.message.body.decode(errors="replace").encode())

    with publishing(mend):
        yield


@killed_by("any_key_arrives_as_it_was_given")
def takes_an_empty_key_for_none():
    with publishing(lambda one: with_message(one, key=one.message.key or None)):
        yield


@killed_by("an_empty_key_is_a_key")
def spreads_an_empty_key_over_all_partitions():
    count = 0

    def spread(one):
        nonlocal count
        count += 1
        return replace(one, partition=count % one.topic.partitions) if one.message.key == "" else one

    with publishing(spread):
        yield


@killed_by("a_message_keeps_its_attributes")
def forgets_the_time():
    with publishing(lambda one: with_message(one, time=None)):
        yield


@killed_by("a_message_without_an_id_is_given_one_of_its_own", "every_message_arrives_whole_and_once")
def gives_ids_of_the_brokers_own():
    with publishing(lambda one: with_message(one, id="")):
        yield


@killed_by("publishes_made_at_once_keep_the_order_of_the_calls")
def reorders_a_batch():
    original = Publisher.publish

    def reversed_batch(self, messages):
        return original(self, messages[::-1])[::-1]

    with patched(Publisher, publish=reversed_batch):
        yield


@killed_by(
    "nothing_is_stored_behind_a_message_of_its_key_that_is_too_large",
    "nothing_is_stored_behind_a_message_of_its_key_that_no_group_gets",
)
def stores_what_is_behind_a_failed_message():
    with patched(FailedKeys, behind=lambda self, outgoing: None):
        yield


@killed_by("every_group_gets_every_message", "a_retry_of_one_group_is_no_business_of_another")
def delivers_to_one_group_only():
    with (
        patched(messaging_memory.topology, physical_group=lambda spec: "the only one"),
        patched(MemoryAdapter, delete_group=_delete_nothing),
    ):
        yield


async def _delete_nothing(self, group):
    pass


@killed_by(
    "a_group_that_was_declared_gets_what_came_while_nobody_listened",
    "a_redriven_message_waits_for_a_member",
    "a_backlog_is_handled_in_order_and_at_once",
)
def begins_a_group_with_its_first_member():
    original = MemoryAdapter.consumer

    def begin(self, subscription, ownership):
        spec = subscription.group
        topic = self._topology.topic(spec.topic)
        group = topic.groups[spec.name]
        if not group.members:
            group.cursors[:] = topic.starts("latest")
            if hasattr(group, "_back"):
                group._back.clear()
        return original(self, subscription, ownership)

    with patched(MemoryAdapter, consumer=begin):
        yield


@killed_by("a_group_begins_when_it_is_declared")
def begins_every_group_at_the_earliest_message():
    original = TopicLog.starts
    with patched(TopicLog, starts=lambda self, start: original(self, "earliest")):
        yield


@killed_by("a_new_group_may_start_at_the_earliest_message", "a_new_group_may_start_at_a_time")
def begins_every_group_at_the_latest_message():
    original = TopicLog.starts
    with patched(TopicLog, starts=lambda self, start: original(self, "latest")):
        yield


@killed_by("a_new_group_may_start_at_a_time")
def takes_a_time_for_the_earliest():
    original = TopicLog.starts
    with patched(
        TopicLog, starts=lambda self, start: original(self, "latest" if start == "latest" else "earliest")
    ):
        yield


@killed_by("only_the_topics_that_are_subscribed_arrive", "names_that_look_alike_are_different_things")
def mixes_topics_up():
    with _physical_topic(lambda spec, namespace: "the only one"):
        yield


@killed_by("names_that_look_alike_are_different_things")
def folds_the_case_of_names():
    original = messaging_memory.topology.physical_topic

    def folded(spec, namespace):
        return original(spec, namespace).lower()

    with _physical_topic(folded):
        yield


@killed_by("names_that_look_alike_are_different_things")
def cuts_long_names():
    original = messaging_memory.topology.physical_topic

    def cut(spec, namespace):
        return original(spec, namespace)[:100]

    with _physical_topic(cut):
        yield


@killed_by("namespaces_keep_environments_apart")
def ignores_namespaces():
    original = messaging_memory.topology.physical_topic

    def shared(spec, namespace):
        return original(spec, None)

    with _physical_topic(shared):
        yield


def _physical_topic(function):
    stack = ExitStack()
    for module in (messaging_memory.topology, messaging_memory.publisher):
        stack.enter_context(patched(module, physical_topic=function))
    return stack


@killed_by("another_number_of_partitions_is_refused", "another_order_is_refused")
def takes_codes_word_for_the_brokers_record():
    with patched(messaging_memory.topology, _same=lambda *_: None):
        yield


@killed_by("a_missing_topic_is_told_where_nothing_may_be_declared")
def creates_topics_that_it_should_only_verify():
    original = TopologyKeeper.declare

    def create(self, topology):
        return original(self, replace(topology, mode="declare"))

    with patched(TopologyKeeper, declare=create):
        yield


@killed_by("what_exists_can_be_used_without_declaring")
def finds_nothing_that_it_should_verify():
    original = TopologyKeeper.declare

    def refuse(self, topology):
        if topology.mode == "verify":
            raise TopicNotFound("nothing is ever found")
        return original(self, topology)

    with patched(TopologyKeeper, declare=refuse):
        yield


@killed_by("declaring_again_changes_nothing")
def begins_a_group_anew_when_it_is_declared_again():
    original = Broker.create_group

    def anew(self, topic, name, **options):
        topic.groups.pop(name, None)
        return original(self, topic, name, **options)

    with patched(Broker, create_group=anew):
        yield


@killed_by("groups_can_be_listed_and_deleted")
def deletes_no_group():
    with patched(Broker, delete_group=lambda self, topic, name: None):
        yield


@killed_by("a_publish_that_no_group_gets_can_be_told", "a_request_that_nobody_could_answer_fails_at_once")
def does_not_tell_that_there_is_no_group():
    with publishing(lambda one: replace(one, mandatory=False)):
        yield


# --- dead letters ------------------------------------------------------------------------------------------------

redrive = MemoryDeadLetters.redrive


@killed_by("a_redrive_reaches_only_its_group")
def redrives_to_all_groups():
    async def to_all(self, letters):
        group = self._group()
        for stored, message, _ in letters:
            letter = self._letter(stored)
            row, _ = row_of(message, 0.0, None, inf)
            group.topic.partitions[letter.record.partition].append(row)
            del group.dead[letter.number]
            for other in group.topic.groups.values():
                other.wake()
        return [None] * len(letters)

    with patched(MemoryDeadLetters, redrive=to_all):
        yield


@killed_by("a_letter_can_be_corrected_on_its_way_back", "an_unreadable_message_can_be_corrected")
def ignores_an_edit():
    async def unedited(self, letters):
        return await redrive(self, [(stored, stored.message, record) for stored, _, record in letters])

    with patched(MemoryDeadLetters, redrive=unedited):
        yield


@killed_by("a_redriven_message_may_die_again")
def forgets_earlier_lives():
    async def forget(self, letters):
        return await redrive(self, [(stored, message, None) for stored, message, _ in letters])

    with patched(MemoryDeadLetters, redrive=forget):
        yield


@killed_by("a_redriven_message_may_die_again", "a_redrive_takes_what_was_chosen")
def keeps_the_letter_of_a_redriven_message():
    async def keep(self, letters):
        group = self._group()
        before = dict(group.dead)
        results = await redrive(self, letters)
        group.dead.update(before)
        return results

    with patched(MemoryDeadLetters, redrive=keep):
        yield


@killed_by("a_redrive_may_be_slow")
def redrives_as_fast_as_it_can():
    original = DeadLetters.redrive
    with patched(DeadLetters, redrive=lambda self, *, rate=None, **options: original(self, **options)):
        yield


@killed_by("purging_deletes_what_was_chosen")
def purges_everything():
    async def purge(self, letters):
        dead = self._group().dead
        count = len(dead) if letters else 0
        if letters:
            dead.clear()
        return count

    with patched(MemoryDeadLetters, purge=purge):
        yield


@killed_by("browsing_consumes_nothing")
def consumes_what_is_browsed():
    original = MemoryDeadLetters._letters

    async def consume(self, scan, letters):
        async for letter in original(self, scan, letters):
            yield letter
            self._group().dead.clear()

    with patched(MemoryDeadLetters, _letters=consume):
        yield


@killed_by("browsing_consumes_nothing")
def shows_the_newest_letter_first():
    original = MemoryDeadLetters._letters
    with patched(MemoryDeadLetters, _letters=lambda self, scan, letters: original(self, scan, letters[::-1])):
        yield


@killed_by("dead_letters_belong_to_one_group")
def mixes_the_dead_letters_of_groups_up():
    def first(self):
        return next(iter(self._topology.topic(self._spec.topic).groups.values()))

    with patched(MemoryDeadLetters, _group=first):
        yield


@killed_by("a_program_that_has_the_topic_wrong_moves_no_letter")
def believes_any_shape_of_a_topic():
    def found(self, spec):
        return self._broker.group(self.topic(spec.topic), spec.name)

    def believed(what, name, said, recorded):
        """Nothing is compared."""

    with patched(TopologyKeeper, declared_group=found), patched(messaging_memory.topology, _same=believed):
        yield


@killed_by("what_is_absent_has_no_dead_letters_and_is_named")
def makes_what_dead_letters_are_asked_of():
    original = TopologyKeeper.declare

    def made(self, topology):
        original(self, replace(topology, mode="declare"))

    with patched(TopologyKeeper, declare=made):
        yield


@killed_by("two_who_redrive_at_once_move_each_letter_once")
def counts_what_another_has_redriven():
    original = MemoryDeadLetters._redrive

    def counted(self, *item):
        result = original(self, *item)
        return None if result is GONE else result

    with patched(MemoryDeadLetters, _redrive=counted):
        yield


# --- replies -----------------------------------------------------------------------------------------------------


@killed_by("a_forged_reply_address_makes_us_publish_nowhere")
def publishes_wherever_a_reply_should_go():
    original = Replier._reply

    def obey(self, address, message):
        for topic in self._broker.topics.values():
            if address and topic.name.endswith(address):
                self._broker.inject(topic.name, message.body)
        return original(self, address, message)

    with patched(Replier, _reply=obey):
        yield


@killed_by("everyone_gets_their_own_reply")
def mixes_replies_up():
    receive = MemoryInbox.receive

    async def mixed(self, limit, wait):
        replies = list(await receive(self, limit, wait))
        ids = [reply.correlation_id for reply in replies]
        return [replace(reply, correlation_id=id) for reply, id in zip(replies, ids[::-1], strict=True)]

    with patched(MemoryInbox, receive=mixed):
        yield


@killed_by("everyone_gets_their_own_reply")
def shares_one_inbox_among_all_requesters():
    with patched(Replier, address=lambda self, member: f"{self._prefix}shared"):
        yield
