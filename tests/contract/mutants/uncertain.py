"""Mutants of publishes whose confirmation is lost."""

from messaging.errors import PublishUncertain
from messaging.message import Receipt
from messaging.publish import Publisher
from messaging.refusals import Refusals
from messaging_memory.publisher import Publisher as MemoryPublisher
from tests.contract.mutants.mutant import killed_by, patched


@killed_by("a_publish_with_an_unknown_fate_says_so")
def takes_an_unknown_fate_for_a_success():
    publish = Publisher.publish

    async def mutated(self, messages, within):
        results = await publish(self, messages, within)
        return [
            Receipt(one.message.id) if isinstance(result, PublishUncertain) else result
            for one, result in zip(messages, results, strict=True)
        ]

    with patched(Publisher, publish=mutated):
        yield


@killed_by("health_tells_of_publishes_that_are_not_taken")
def says_nothing_of_publishes_that_are_not_taken():
    with patched(Refusals, last=lambda _: None):
        yield


@killed_by("health_tells_of_publishes_that_are_not_taken")
def never_forgets_that_a_publish_was_not_taken():
    with patched(Refusals, _confirmed=lambda _self, _topics: None):
        yield


@killed_by(
    "a_publish_with_an_unknown_fate_is_stored_once_where_that_is_asked",
    "a_message_without_order_is_stored_once_or_refused",
)
def stores_what_is_sent_again_again():
    publish = MemoryPublisher.publish

    def mutated(self, messages):
        for outgoing in messages:
            outgoing.once = None
        return publish(self, messages)

    with patched(MemoryPublisher, publish=mutated):
        yield
