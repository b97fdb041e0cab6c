"""Fetching: one request under way per broker, kept until something comes.

A partition whose reader is slow is left out of the next request, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from math import inf
from typing import TYPE_CHECKING, Any

from messaging.errors import ConnectionFailed, MessagingError, TopicNotFound
from messaging_kafka import library
from messaging_kafka.brokers import GONE
from messaging_kafka.connection import check, translate
from messaging_kafka.library import Errors, KafkaError, Place
from messaging_kafka.source import Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from messaging_kafka.brokers import Brokers

logger = logging.getLogger("messaging")

PARTITION_BYTES = 1 << 20
"""What one answer brings of one partition, unless its first batch is larger."""
ANSWER_BYTES = 16 << 20
READ_COMMITTED = 1
LOG_APPEND_TIME = 1
BUSY_WAIT = 0.02
"""Seconds that a broker may wait where a partition was left out, so that it is asked for soon."""
PAUSE = 0.05
"""Seconds before a broker that answered with an error is asked again."""
UNLED_PAUSE = 0.5
"""Seconds between looks for the leader of a partition that has none for longer."""
UNLED_AFTER = 5.0
"""Seconds for which a partition may have no leader until that is told: another is elected within them."""
QUOTA_PATIENCE = 60.0
"""Seconds for which a quota may hold back what is read to its end; one that is less than a batch never gives it."""
QUOTA_TOLD = 1.0
"""Seconds for which a quota must hold reading back for the log to say so."""
QUOTA_TOLD_FOR = 60.0
"""Seconds without that, after which it is said again."""
_MOVED = (
    *GONE,
    Errors.NotLeaderForPartitionError,
    Errors.LeaderNotAvailableError,
    Errors.ReplicaNotAvailableError,
    Errors.KafkaStorageError,
)


class Fetcher:
    """Fetches for one reader. `woken()` is called when there is something to read, or an error."""

    def __init__(self, brokers: Brokers, name: str, woken: Callable[[], None]) -> None:
        self._brokers = brokers
        self._link = brokers.link
        self._channel = f"fetch {name}"
        self._name = name
        self._woken = woken
        self._sources: dict[Place, Source] = {}
        self._polls: dict[int, asyncio.Task[None]] = {}
        self._finding: asyncio.Task[None] | None = None
        self._unled = asyncio.Event()
        self._since: dict[Place, float] = {}
        """Since when partitions have no leader, in monotonic seconds; endless where that was told."""
        self._waiting: set[int] = set()
        """Brokers that take no request before a quota lets them."""
        self._held_back = -inf
        """Until when a quota held it back last, in monotonic seconds."""
        self._room = asyncio.Event()
        self._again = asyncio.Event()
        self._again.set()
        self._closed = False
        self.error: MessagingError | None = None
        """Why nothing comes at the moment; cleared by `retry`."""

    def add(self, sources: Iterable[Source]) -> None:
        """Read these too; nothing once it is closed."""
        if self._closed:
            return
        for source in sources:
            self._sources[source.place] = source
        if self._finding is None:
            self._finding = asyncio.create_task(self._find(), name="messaging-kafka-leaders")
        self._unled.set()
        self._room.set()

    def remove(self, places: Iterable[Place]) -> None:
        for place in places:
            self._sources.pop(place, None)

    def hungry(self) -> None:
        """Something was read: there may be room for more."""
        self._room.set()

    def retry(self) -> None:
        """Try again after an error."""
        self.error = None
        self._again.set()

    def tell(self, error: MessagingError) -> None:
        """The reader is to know of this, once."""
        self.error = error
        self._woken()

    def asking(self) -> list[Source]:
        """What answers are expected for: nothing after an error, until somebody tries again."""
        if self.error is not None:
            return []
        return [
            one
            for place, one in self._sources.items()
            if one.hungry and self._brokers.leader(place) not in {None, *self._waiting}
        ]

    async def behind(self, sources: Iterable[Source]) -> int:
        """How many records the brokers have beyond what was fetched of these."""
        ends = await self._brokers.offsets({source.place: library.LATEST for source in sources})
        return sum(
            max(0, ends[place] - source.asked)
            for place, source in self._sources.items()
            if place in ends and source.hungry
        )

    async def restart(self, error: MessagingError) -> None:
        """Ask anew, by new connections, for the leaders too; what was fetched stays. The reader is told `error`."""
        await self._stop()
        for place in self._sources:
            self._brokers.forget_leader(place)
        self.tell(error)
        self.add(())

    async def close(self) -> None:
        """Read no more. A share that is still being taken may add sources after it."""
        self._closed = True
        await self._stop()

    async def _stop(self) -> None:
        tasks = [*self._polls.values(), *([self._finding] if self._finding else [])]
        self._polls.clear()
        self._finding = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._link.drop_channel(self._channel)

    # --- who leads ---------------------------------------------------------------------------------------------

    async def _find(self) -> None:
        """Give every broker that leads something a task that asks it."""
        pause = PAUSE
        while True:
            self._unled.clear()
            lost = [place for place in self._sources if self._brokers.leader(place) is None]
            if lost:
                lost = await self._look(lost)
            self._tell_unled(lost)
            for place in self._sources:
                node = self._brokers.leader(place)
                if node is not None and node not in self._polls:
                    self._polls[node] = asyncio.create_task(self._poll(node), name="messaging-kafka-fetch")
            self._room.set()  # one that had nothing to ask for may have now
            if lost:
                await asyncio.sleep(pause)
                pause = min(2 * pause, UNLED_PAUSE)
            else:
                pause = PAUSE
                await self._unled.wait()

    def _tell_unled(self, lost: list[Place]) -> None:
        """Of partitions that have no leader: once each, when no broker becomes it soon."""
        now = time.monotonic()
        self._since = {place: self._since.get(place, now) for place in lost}
        for place, since in self._since.items():
            if now - since < UNLED_AFTER:
                continue
            self._since[place] = inf
            logger.warning(
                "Partition %d of %s has no leader on Kafka: %s reads nothing of it until a broker that has a copy of "
                "it is back",
                place.partition,
                place.topic,
                self._name,
                extra={"topic": place.topic, "partition": place.partition},
            )

    async def _look(self, lost: list[Place]) -> list[Place]:
        """Those that have no leader, and are wanted still."""
        try:
            await self._brokers.find_leaders(lost)
            lost = [place for place in lost if place in self._sources and self._brokers.leader(place) is None]
            missing = {place.topic for place in lost}
            if missing:
                there = await self._brokers.partitions(missing)
                gone = sorted(missing - there.keys())
                if gone:
                    raise TopicNotFound(
                        f"{self._name}: Kafka at {self._link.settings.address} has no topic {', '.join(gone)} "
                        f"any more: it was deleted"
                    )
        except Exception as error:
            await self._failed(error)
            self._unled.set()
            return []
        return lost

    # --- ask ---------------------------------------------------------------------------------------------------

    async def _poll(self, node: int) -> None:
        turn = 0
        while True:
            led = [source for place, source in self._sources.items() if self._brokers.leader(place) == node]
            wanted = [source for source in led if source.hungry]
            if any(self._brokers.leader(place) not in self._polls for place in self._sources):
                # Others look for leaders too: what they found moved must be asked for elsewhere.
                self._unled.set()
            if not wanted:
                if not led:
                    self._polls.pop(node, None)
                    self._unled.set()
                    return
                self._room.clear()
                await self._room.wait()
                continue
            # A batch above the limit of its partition comes only where that partition is named first.
            turn = (turn + 1) % len(wanted)
            try:
                if await self._made_anew(wanted):
                    continue
                moved = await self._ask(node, wanted[turn:] + wanted[:turn], patient=len(wanted) == len(led))
            except Exception as error:
                for source in wanted:
                    self._brokers.forget_leader(source.place)
                await self._failed(error)
                continue
            if moved:
                self._unled.set()
                await asyncio.sleep(PAUSE)

    async def _failed(self, error: Exception) -> None:
        """Tell, and wait until somebody wants to try again."""
        if not isinstance(error, (KafkaError, MessagingError)):
            logger.error("Reading %s ended by a defect, and begins again", self._name, exc_info=error)
        self._again.clear()
        self.error = translate(error, f"reading {self._name}", self._link.settings.address)
        self._woken()
        await self._again.wait()

    async def _ask(self, node: int, wanted: list[Source], *, patient: bool) -> bool:
        """One request; whether a partition has moved."""
        settings = self._link.settings
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for source in wanted:
            topic, partition = source.place
            topics.setdefault(topic, []).append((partition, source.asked, PARTITION_BYTES))
        wait = settings.fetch_wait if patient else min(BUSY_WAIT, settings.fetch_wait)
        request = library.Fetch(int(wait * 1000), 1, ANSWER_BYTES, READ_COMMITTED, list(topics.items()))
        asked = {source.place: (source, source.asked) for source in wanted}
        sent = time.monotonic()
        response = await self._link.send(
            request, node=node, channel=self._channel, within=settings.operation_timeout + wait
        )
        came = time.monotonic()
        check(getattr(response, "error_code", 0))
        if held := _held_back(response):
            await self._wait_for_quota(node, wanted, held)
            return False
        moved = news = False
        for topic, partitions in response.topics:
            for partition, code, end, *rest in partitions:
                source, position = asked[Place(topic, partition)]
                if self._sources.get(source.place) is not source or source.asked != position:
                    continue
                if code:
                    moved |= await self._refused(source, code)
                    continue
                source.end = end
                source.heard += 1
                kept = (source.caught_up, came)
                last = source.answered(rest[-1], _aborted(response, rest), kept)
                news |= last is not None
                if getattr(last, "timestamp_type", None) == LOG_APPEND_TIME:
                    self._brokers.time.told(last.max_timestamp / 1000, *kept)
                source.caught_up = sent if source.asked >= end else -inf
        if news:
            self._woken()
        return moved

    async def _wait_for_quota(self, node: int, wanted: list[Source], held: float) -> None:
        """A quota: the broker answered with nothing, and reads no request of this connection before its time."""
        now = time.monotonic()
        if now - self._held_back > QUOTA_TOLD_FOR and held > QUOTA_TOLD:
            logger.warning(
                "A quota on Kafka holds back what %s reads, for %.1f s: messages wait. Give its client id, %s, a "
                "larger one, or let it read less",
                self._name,
                held,
                self._link.settings.client_id,
                extra={"seconds": held},
            )
        self._held_back = max(self._held_back, now + held)
        self._waiting.add(node)
        try:
            await asyncio.sleep(held)
        finally:
            self._waiting.discard(node)
        for source in wanted:
            source.heard += 1

    async def _made_anew(self, wanted: list[Source]) -> bool:
        """Whether a topic of these is another than the one that their positions are of, under the same name."""
        found = False
        for source in wanted:
            topic_id = self._brokers.topic_ids.of(source.place.topic)
            if source.topic_id in {None, topic_id}:
                source.topic_id = topic_id
            elif topic_id is not None:
                found = True
                await self._begin_anew(source)
        return found

    async def _begin_anew(self, source: Source) -> None:
        place = source.place
        first = (await self._brokers.offsets({place: library.EARLIEST}))[place]
        logger.error(
            "Topic %s was deleted and made anew while %s read it: partition %d begins at the first message that is "
            "kept, %d, instead of %d",
            place.topic,
            self._name,
            place.partition,
            first,
            source.asked,
            extra={"topic": place.topic, "partition": place.partition},
        )
        source.broken = first
        self._woken()

    async def _refused(self, source: Source, code: int) -> bool:
        error = library.failure_of(code)
        assert error is not None
        if isinstance(error, _MOVED):
            self._brokers.forget_leader(source.place)
            return True
        if isinstance(error, Errors.OffsetOutOfRangeError):
            await self._out_of_range(source)
            return False
        raise error

    async def _out_of_range(self, source: Source) -> None:
        place, asked = source.place, source.asked
        first = (await self._brokers.offsets({place: library.EARLIEST}))[place]
        end = (await self._brokers.offsets({place: library.LATEST}))[place]
        extra = {"topic": place.topic, "partition": place.partition}
        if first > asked:
            if lost := source.undone(asked, first):
                logger.error(
                    "%d messages of partition %d of %s were deleted by its retention before %s had handled them",
                    lost,
                    place.partition,
                    place.topic,
                    self._name,
                    extra={**extra, "lost": lost},
                )
            source.skip(first)
            self._woken()
        elif end < asked:
            logger.error(
                "Partition %d of %s ends at %d, before the position %d of %s: the topic was made anew, or a broker "
                "lost messages. It begins anew at the first that is kept, %d",
                place.partition,
                place.topic,
                end,
                asked,
                self._name,
                first,
                extra={**extra, "lost": asked - end},
            )
            source.broken = first
            self._woken()
        else:
            await asyncio.sleep(PAUSE)  # a new leader that did not know its end yet


async def read_between(brokers: Brokers, place: Place, start: int, end: int) -> AsyncIterator[Any]:
    """The records of a partition from `start` to before `end`, without a group.

    Raises ConnectionFailed, also where the broker answers with nothing for the time of an operation: less is never
    taken for all.
    """
    source = Source(place, start)
    link = brokers.link
    what = f"reading partition {place.partition} of {place.topic}"
    until = time.monotonic() + link.settings.operation_timeout
    left = QUOTA_PATIENCE
    while source.asked < end:
        before = source.asked
        with link.translated(what):
            await brokers.find_leaders([place])
            node = brokers.leader(place)
            if node is None:
                raise Errors.LeaderNotAvailableError(place.topic)
            ask = [(place.topic, [(place.partition, source.asked, PARTITION_BYTES)])]
            request = library.Fetch(100, 1, ANSWER_BYTES, READ_COMMITTED, ask)
            response = await link.send(request, node=node)
            if held := _held_back(response):
                left -= held
                if left < 0:
                    raise ConnectionFailed(
                        f"{what}: a quota on Kafka gives client id {link.settings.client_id} nothing of it"
                    )
                await asyncio.sleep(held)
                until += held
                continue
            ((_, ((_, code, _, *rest),)),) = response.topics
            error = library.failure_of(code)
            if isinstance(error, Errors.OffsetOutOfRangeError):
                first = (await brokers.offsets({place: library.EARLIEST}))[place]
                if first <= source.asked:
                    return
                source.rewind(first)
                continue
            if error is not None:
                brokers.forget_leader(place)
                raise error
            source.answered(rest[-1], _aborted(response, rest))
            records = source.read(1 << 30)
        if source.asked == before and time.monotonic() > until:
            raise ConnectionFailed(f"{what}: the broker answered with nothing from {before} on, of {end}")
        for record in records:
            if record.offset >= end:
                return
            yield record
        if source.asked > before:  # counted from here: what is made of the records may take longer
            until = time.monotonic() + link.settings.operation_timeout
            left = QUOTA_PATIENCE


def _held_back(response: Any) -> float:
    """For how many seconds a quota keeps a broker from giving what was asked for; it gave nothing then."""
    return 0.0 if response.topics else float(response.throttle_time_ms / 1000)


def _aborted(response: Any, fields: Sequence[Any]) -> Any:
    """The aborted transactions of a partition, of which an answer has these fields behind the end of its log."""
    return fields[2] if response.API_VERSION >= 11 else fields[-2]
