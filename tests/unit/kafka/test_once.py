"""Writing what is stored once, on a stand-in for the broker that knows producers as Kafka does."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from messaging.adapter import Untraceable
from messaging.errors import MessageTooLarge, PublishError, PublishUncertain
from messaging_kafka import library, marks
from messaging_kafka.library import Errors, Place
from messaging_kafka.once import OnceWriter
from messaging_kafka.producers import SEQUENCES, Producer
from messaging_kafka.records import Parcel
from messaging_kafka.settings import KafkaSettings

LOST = "lost"
"""An answer: the batch is stored, and nobody hears of it."""
NEVER = "never"
"""The batch does not arrive, and nobody hears of it."""


@dataclass
class StandIn:
    """A broker with one topic, and the only link to it."""

    log: dict[int, list[str]] = field(default_factory=dict)
    answers: list[object] = field(default_factory=list)
    """To the next requests: None, LOST, NEVER, an error's class, or an event that they wait for."""
    epoch: int = 0
    late: bool = False
    """It refuses as one that is named as the leader and has not begun to lead yet: the epoch stays."""
    unled: int = 0
    """For so many looks nobody leads."""
    asked: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        self.link = self
        self.settings = KafkaSettings(confirm_timeout=1)
        self.producers: dict[tuple[int, int], dict[int, tuple[int, int, int]]] = {}
        self.refused: list[type[Exception]] = []

    def translated(self, what: str):
        from messaging_kafka.connection import Link

        return Link.translated(self, what)  # type: ignore[arg-type]

    async def find_leaders(self, places) -> None:
        list(places)

    def leader(self, place: Place) -> int | None:
        self.unled -= self.unled > 0
        return None if self.unled else 1

    async def ask_leaders(self, places):
        self.epoch += not self.late
        return dict.fromkeys(places, (1, self.epoch))

    def knows(self, place: Place) -> bool:
        return True

    def forget_leader(self, place: Place) -> None: ...

    async def partitions(self, names):
        return dict.fromkeys(names, 4)

    async def send(self, request, **_):
        await asyncio.sleep(0)
        if isinstance(request, library.InitProducerId):
            self.asked += 1
            return SimpleNamespace(error_code=0, producer_id=self.asked, producer_epoch=0)
        self.sent += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = None
        if answer == NEVER:
            raise Errors.RequestTimedOutError
        if isinstance(answer, Exception):
            raise answer
        topics = [
            (topic, [(number, *self.store(number, data, answer)) for number, data in partitions])
            for topic, partitions in request._topics
        ]
        if answer == LOST:
            raise Errors.KafkaConnectionError
        return SimpleNamespace(topics=topics)

    def store(self, partition: int, data: bytes, answer: object) -> tuple[int, int]:
        """Code and offset, as Kafka's record of producers decides."""
        if isinstance(answer, type):
            return answer.errno, -1  # type: ignore[attr-defined]
        batch = library.Batches(data).next_batch()
        values = [record.value.decode() for record in batch]
        key, first = (batch.producer_id, partition), batch.base_sequence
        last = (first + len(values) - 1) % SEQUENCES
        log = self.log.setdefault(partition, [])
        known = self.producers.setdefault(key, {})
        if 0 in known:
            if known[0][:2] == (first, last):
                return 0, known[0][2]
            if first != (known[0][1] + 1) % SEQUENCES:
                return Errors.OutOfOrderSequenceNumber.errno, -1
        known[0] = first, last, len(log)
        log += values
        return 0, known[0][2]


class Desk:
    """A writer on the stand-in."""

    def __init__(self) -> None:
        self.broker = StandIn()
        self.writer = OnceWriter(self.broker)  # type: ignore[arg-type]

    async def write(self, *ids: str, partition: int = 0):
        parcels = [Parcel("orders", partition, b"k", id.encode(), []) for id in ids]
        return await self.writer.write(parcels, ids)

    @property
    def log(self) -> list[str]:
        return self.broker.log.get(0, [])


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_one_producer_id_serves_what_is_confirmed(desk: Desk) -> None:
    assert await desk.write("1", "2") == [0, 1]
    assert await desk.write("3") == [2]
    assert await desk.write("4", partition=1) == [0]
    assert desk.broker.asked == 1


@pytest.mark.parametrize("what", [LOST, NEVER])
async def test_what_is_sent_again_is_stored_once(desk: Desk, what: str) -> None:
    desk.broker.answers = [None, what, what]
    await desk.write("0")

    lost = await desk.write("1", "2")
    lost_again = await desk.write("1", "2")

    assert {type(one) for one in [*lost, *lost_again]} == {PublishUncertain}
    assert await desk.write("1", "2") == [1, 2]
    assert await desk.write("3") == [3]
    assert desk.log == ["0", "1", "2", "3"]


async def test_a_part_that_is_sent_again_brings_its_whole_batch(desk: Desk) -> None:
    """The broker knows the batch only as a whole; nobody was told that the other part is not stored."""
    desk.broker.answers = [LOST]
    await desk.write("1", "2", "3")

    assert await desk.write("3", "4") == [2, 3]
    assert desk.log == ["1", "2", "3", "4"]


async def test_nothing_waits_for_what_is_uncertain(desk: Desk) -> None:
    desk.broker.answers = [NEVER]
    await desk.write("1")

    assert await desk.write("2") == [0]
    assert await desk.write("1") == [1]
    assert await desk.write("3") == [2]
    assert desk.log == ["2", "1", "3"]
    assert desk.broker.asked == 2


async def test_nothing_is_written_after_what_is_uncertain_again(desk: Desk) -> None:
    desk.broker.answers = [NEVER, LOST]
    await desk.write("1")

    again, behind = await desk.write("1", "2")

    assert isinstance(again, PublishUncertain)
    assert not isinstance(behind, PublishUncertain)
    assert isinstance(behind, PublishError)
    assert await desk.write("1", "2") == [0, 1]
    assert desk.log == ["1", "2"]


async def test_several_uncertain_batches_of_a_partition_go_again_in_their_order(desk: Desk) -> None:
    desk.broker.answers = [NEVER, NEVER, None, NEVER]
    await desk.write("1")
    await desk.write("2")

    first, second = await desk.write("1", "2")

    assert first == 0
    assert isinstance(second, PublishUncertain)
    assert await desk.write("1", "2") == [0, 1]
    assert desk.log == ["1", "2"]


@pytest.mark.parametrize(
    "error", [Errors.OutOfOrderSequenceNumber, Errors.UnknownProducerId, Errors.InvalidProducerEpoch]
)
async def test_another_producer_id_is_taken_where_the_broker_lost_track(
    desk: Desk, error: type[Exception]
) -> None:
    desk.broker.answers = [None, error]
    await desk.write("1")

    assert await desk.write("2", "3") == [1, 2]
    assert await desk.write("4") == [3]
    assert desk.broker.asked == 2


async def test_a_broker_that_takes_no_producer_id_is_told_soon(desk: Desk) -> None:
    desk.broker.answers = [Errors.OutOfOrderSequenceNumber] * 10

    (fate,) = await desk.write("1")

    assert type(fate) is PublishError
    assert desk.broker.sent == 3


@pytest.mark.parametrize("what", [LOST, NEVER])
async def test_what_was_uncertain_when_the_broker_lost_track_is_never_sent_again(
    desk: Desk, what: str
) -> None:
    desk.broker.answers = [what, Errors.UnknownProducerId]
    await desk.write("1")

    told, behind = await desk.write("1", "2")
    (again,) = await desk.write("1")

    assert isinstance(told, Untraceable)
    assert isinstance(again, Untraceable)
    assert isinstance(behind, PublishError)
    stored = ["1"] if what == LOST else []
    assert desk.log == stored
    assert await desk.write("2") == [len(stored)]


async def test_a_number_is_never_given_to_another_batch_after_a_refusal(desk: Desk) -> None:
    """If the broker had stored it all the same, it would take the next batch for that one, and confirm nothing."""
    desk.broker.answers = [Errors.PolicyViolationError]

    (refused,) = await desk.write("1")

    assert type(refused) is PublishError
    assert await desk.write("2") == [0]
    assert desk.broker.asked == 2


async def test_a_former_leader_that_may_have_stored_it_leaves_its_fate_unknown(desk: Desk) -> None:
    desk.broker.answers = [Errors.NotLeaderForPartitionError] * 2

    (fate,) = await desk.write("1")

    assert isinstance(fate, PublishUncertain)
    assert await desk.write("1") == [0]


async def test_an_error_that_the_broker_has_no_name_for_leaves_the_fate_unknown(desk: Desk) -> None:
    desk.broker.answers = [Errors.UnknownError]

    (fate,) = await desk.write("one")

    assert isinstance(fate, PublishUncertain)


async def test_only_what_is_too_large_fails(desk: Desk) -> None:
    too_large = Errors.MessageSizeTooLargeError
    desk.broker.answers = [too_large, None, too_large]

    one, two, three = await desk.write("1", "2", "3")

    assert (one, type(two), type(three)) == (0, MessageTooLarge, PublishError)
    assert await desk.write("3") == [1]


async def test_batches_that_are_under_way_at_once_have_producer_ids_of_their_own(desk: Desk) -> None:
    gate = asyncio.Event()
    desk.broker.answers = [gate, gate]
    writing = [asyncio.create_task(desk.write(id)) for id in "12"]
    while desk.broker.sent < 2:
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*writing)

    for id in "3456":
        await desk.write(id)

    assert sorted(desk.log) == list("123456")
    assert desk.broker.asked == 2


async def test_what_was_cancelled_is_known_when_it_comes_again(desk: Desk) -> None:
    desk.broker.answers = [asyncio.Event(), asyncio.Event()]
    for sent in (1, 2):
        writing = asyncio.create_task(desk.write("1"))
        while desk.broker.sent < sent:
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    assert await desk.write("1") == [0]
    assert await desk.write("2") == [1]


async def test_what_the_broker_may_have_forgotten_is_not_sent_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.broker.answers = [LOST]
    await desk.write("1")
    monkeypatch.setattr(marks, "KNOWN_FOR", 0.0)

    (fate,) = await desk.write("1")

    assert isinstance(fate, Untraceable)
    assert desk.log == ["1"]


async def test_memory_for_what_is_uncertain_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "KEPT_BYTES", 3000)
    desk.broker.answers = [NEVER] * 20

    for number in range(20):
        await desk.write(f"{number:0900}")

    (oldest,), (newest,) = await desk.write(f"{0:0900}"), await desk.write(f"{19:0900}")
    assert isinstance(oldest, Untraceable)
    assert newest == 0


async def test_numbers_begin_anew_after_the_last() -> None:
    producer, place = Producer(1, 0), Place("orders", 0)
    producer.take(place)
    producer.give_back(place, SEQUENCES - 2)
    producer.take(place)

    producer.give_back(place, 5)

    assert producer.take(place) == 3
