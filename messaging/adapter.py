"""The SPI: what an adapter implements for one broker. Public, documented, versioned by `API_VERSION`.

An adapter moves batches and keeps promises. It holds no policy, never retries by itself and logs no secret. Each
call makes at most one attempt to (re)connect; whoever calls decides when to try again. Broker exceptions are
translated at the adapter's edge into `messaging.errors`. All of it runs on one event loop.
The numbers below are those of the rules in the semantics page of the documentation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from messaging.capabilities import Capabilities as Capabilities
from messaging.capabilities import Capability as Capability
from messaging.errors import PublishUncertain
from messaging.message import Message, Outcome, Receipt
from messaging.probe import BrokerHealth as BrokerHealth
from messaging.probe import GroupInfo as GroupInfo
from messaging.topology import GroupSpec as GroupSpec
from messaging.topology import Start as Start
from messaging.topology import TopicSpec as TopicSpec
from messaging.topology import Topology as Topology
from messaging.topology import TopologyMode as TopologyMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from messaging.clock import Clock
    from messaging.errors import MessagingError, PublishError

API_VERSION = 1
HEALTH_TIMEOUT = 0.9
"""Seconds for which an adapter's `health` asks its broker: `Adapter.health` is bounded by one."""
SUSPECT_AFTER = 3
"""`RawDelivery.returns` from which on a message is run alone (semantics 3)."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one consumer reads, and how much of it may be in this process."""

    group: GroupSpec
    prefetch: int
    """Deliveries that may be in the process unparked (8)."""
    concurrency: int
    max_hold: float = 0.0
    """The longest delay that the retry policy may ask for, seconds."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """One message to publish: validated, encoded, with its partition."""

    topic: TopicSpec
    message: Message
    partition: int
    mandatory: bool = False
    """Return NoGroup instead of a receipt where no group takes it."""
    reply_to: str | None = None
    """The address of the inbox that waits for a reply."""
    once: str | None = None
    """Of a broker with `idempotent_publish`: if a message with this mark was stored in the last five minutes, the
    receipt is that one's, and nothing is stored."""


@dataclass(frozen=True, slots=True)
class Unrouted(Receipt):
    """The receipt of a message that the broker confirmed although no group takes it."""


class Untraceable(PublishUncertain):
    """The fate of a message with `Outgoing.once` is unknown for ever: sent again, it might be stored a second time."""


@dataclass(slots=True)
class Lease:
    """Until when deliveries are ours. One object may serve all deliveries of a partition; its adapter moves it."""

    deadline: float = inf
    """In `Clock.monotonic` seconds."""


Guard: TypeAlias = Literal["none", "alone", "tripped"]


@dataclass(slots=True, eq=False)
class RawDelivery:
    """One hand-over by the broker, body undecoded. Identity is the object: equality is `is`."""

    message: Message
    partition: int = 0
    position: str = ""
    attempt: int = 1
    """1 plus the failures recorded for the message (2)."""
    deliveries: int = 1
    """The broker's count of hand-overs, or an upper bound."""
    returns: int = 0
    """How often it came back without a recorded failure since the last one: feeds the crash guard only (3)."""
    guard: Guard = "none"
    """`alone`: the durable mark is stored, run it alone now. `tripped`: it came back with the mark."""
    failure: str | None = None
    """The failure record that was last passed to `settle` for this message."""
    reply_to: str | None = None
    fence: int = 0
    lease: Lease = field(default_factory=Lease)
    native: Any = None
    token: Any = None
    """The adapter's own."""
    hold: float = 0.0
    """Seconds for which it must still be held: what is left of a retry's delay that a former owner began."""
    received: float = 0.0  # the dispatcher's own


@dataclass(slots=True, eq=False)
class Settlement:
    """The outcome of one delivery.

    Ack: the message is done. Release: given back, uncounted, after `after` seconds. Retry: a failure, `after` is
    always a number of seconds. Reject: a dead letter of the group, stored and confirmed first. With Retry and
    Reject, `failure` is the failure record to store (ASCII JSON), and the message's recorded failures are now
    `delivery.attempt`. What is too large for its copy is held where it is a Retry, and cut where it is a Reject
    (`messaging.oversize`): a copy that never fits is no SettleError, which would be tried for ever.
    """

    delivery: RawDelivery
    outcome: Outcome
    after: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The broker has it: the delivery is over."""


@dataclass(frozen=True, slots=True)
class Hold:
    """The failure is recorded as durably as the broker allows; keep the delivery and run it again at `until`."""

    until: float
    """In `Clock.monotonic` seconds."""


@dataclass(frozen=True, slots=True)
class SettleError:
    """The settlement was not taken.

    LeaseLost: the message has another owner, the delivery is over here; on an ordered group so is what this member
    received of the same key with the same fence. Any other error: nothing is known to be settled; the dispatcher
    settles again, with growing waits, until the delivery is reported lost or its lease ends.
    """

    error: MessagingError


Settled: TypeAlias = Done | Hold | SettleError
DONE = Done()


class Ownership(Protocol):
    """What a consumer tells its dispatcher (13)."""

    async def on_revoke(self, partitions: Collection[int], deadline: float) -> None:
        """Start nothing more of these partitions, finish and settle what runs, then return.

        Returns by `deadline` (monotonic seconds) at the latest; what still ran is cancelled and released.
        """
        ...

    def on_lost(self, deliveries: Collection[RawDelivery], reason: str) -> None:
        """These are already gone: running handlers are cancelled, nothing of them is settled.

        On an ordered group so is what was received of the same key with the same fence (7).
        """
        ...


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """What one consumer knows without asking the broker."""

    connected: bool
    partitions: Collection[int] | None = None
    """The partitions that this member owns; None where members share all."""
    full: Collection[int] = ()
    """Partitions that wait: what is unfinished of them fills the room that the broker has for it (8)."""


class Consumer(ABC):
    """A member of a group. Not safe for concurrent `receive`; the other methods may run beside it.

    When the connection breaks, the consumer calls `on_lost` for the deliveries whose settlement can no longer be
    taken, `receive` raises ConnectionFailed, and the next `receive` makes one attempt to connect again.
    """

    lease: float | None = None
    """Seconds for which a delivery is ours; the dispatcher extends at a third of it. None: nothing to extend."""
    window: int = 1000
    """How many deliveries of one partition may be parked here before the partition must wait (8)."""
    ack_timeout: float = inf
    """Seconds after which the broker was seen to take back what is not settled, whatever this member does."""

    @abstractmethod
    async def receive(self, limit: int, wait: float, paused: Collection[int] = ()) -> Sequence[RawDelivery]:
        """Up to `limit` deliveries, as soon as there is one, or none after `wait` seconds.

        Of an ordered group, deliveries of one partition come in order, and only while this member owns the
        partition. Partitions in `paused` yield nothing now. Guaranteed: cancelling loses nothing; what was taken
        from the broker is returned by the next call or given back by `close`; until then the adapter keeps its lease,
        for the dispatcher extends what it was given.

        Raises ConnectionFailed (transient: call again, as after each error that `errors.is_fatal` does not know),
        AuthenticationFailed, ConfigurationError or TopicNotFound (fatal for the subscription), TopologyLost (declared
        anew; a new consumer goes on, this one commits no more).
        """

    @abstractmethod
    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        """Settle each, in one exchange with the broker where it allows; one result each, in order.

        A copy (retry, dead letter) is stored and confirmed before its delivery is given up (1). Settling a
        delivery twice is a no-op that answers Done. Raises nothing for a broken connection: that is a SettleError
        per item. Safe against cancellation: what was handed over may be settled, nothing else.
        """

    @abstractmethod
    async def extend(self, deliveries: Sequence[RawDelivery], seconds: float) -> Sequence[bool]:
        """Extend the leases of these; False for each that is no longer ours. Never called when `lease` is None."""

    @abstractmethod
    async def isolate(self, delivery: RawDelivery) -> bool:
        """Store durably that this delivery is now run alone (3).

        True: the mark is stored, run it now. False: the broker keeps a marked copy, which will be handed over
        with `guard="alone"`; this delivery is over. Raises LeaseLost, or TopicNotFound: it is over here. After
        any other error that `errors.is_fatal` does not know, the mark may be stored or not; the dispatcher asks again
        while the delivery is ours. Marking twice is a no-op.
        """

    @abstractmethod
    def status(self) -> ConsumerStatus:
        """Cheap, no I/O."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the group. What was received and not settled goes back uncounted, in order.

        A second call is a no-op.
        """


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter as the broker keeps it."""

    message: Message
    failure: str | None
    """The failure record given to `settle`; None where another program put it there."""
    reference: Any
    """The adapter's own: where it is."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The letter is not there any more: somebody else redrove or purged it."""


GONE = Gone()


class DeadLetterStore(ABC):
    """The dead letters of one group of one topic.

    Every method raises TopicNotFound where the topic is absent, and ConfigurationError where the group is, or where
    the broker's record of partitions or order differs from the group given (16): nothing is moved then.
    """

    @abstractmethod
    async def count(self) -> int:
        """How many there are."""

    @abstractmethod
    def scan(self) -> AbstractAsyncContextManager[AsyncIterator[StoredLetter]]:
        """The letters that are there when the scan starts, oldest first, each once. Consumes and reorders nothing.

        `redrive` and `purge` take letters of an open scan only.
        """

    @abstractmethod
    async def redrive(
        self, letters: Sequence[tuple[StoredLetter, Message, str | None]]
    ) -> Sequence[PublishError | Gone | None]:
        """Put each message at the tail of this group only, confirmed, then remove the letter (11).

        Each item is the letter, the message to deliver, and the failure record that goes with it (counters of
        earlier lives). The message starts at attempt 1. None: moved. Gone: it was not there, nothing was done.
        """

    @abstractmethod
    async def purge(self, letters: Sequence[StoredLetter]) -> int:
        """Remove these; how many were removed."""


class ReplyInbox(ABC):
    """Where replies to this process arrive."""

    address: str

    @abstractmethod
    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """Replies as they come, or none after `wait` seconds. Replies are not acknowledged.

        Raises ConnectionFailed when replies sent meanwhile may be lost; the next call makes one attempt to
        connect again and may change `address`. What `errors.is_fatal` knows ends all requests of the process.
        """

    @abstractmethod
    async def close(self) -> None:
        """Leave nothing behind on the broker. A second call is a no-op."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterContext:
    """What every adapter is given."""

    clock: Clock
    namespace: str | None = None
    source: str = ""
    member: str = ""
    """Unique for this start of this process."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The `[broker.<name>]` settings; the URL's query parameters come before them."""


class Adapter(ABC):
    """One connection (or pool) to one broker."""

    name: ClassVar[str]
    api_version: ClassVar[int] = API_VERSION
    shares: ClassVar[int] = 4
    """Calls of `publish` among which what goes out at once is divided: the broker works on one while the next is made.

    Fewer where a call costs more than that gains.
    """
    per_request: ClassVar[int] = 0
    """Messages of one topic that one request of the broker takes at most, where `publish` makes several for more.

    What is published without order then goes in full requests, in up to `shares` calls of `publish` at once for each
    topic. 0: a call is one exchange with the broker, however many messages and topics it has.
    """
    topics_apart: ClassVar[bool] = False
    """Whether what is published to each topic goes in calls of its own, so that one whose storage hangs holds up no
    other. For brokers of which a part may hang while others answer, and on which a call for a topic costs little.
    """

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, context: AdapterContext) -> Adapter:
        """Read the URL and options; no I/O. Raises ConfigurationError for an option that is unknown or illegal."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What is promised; complete (versions, durability) once opened."""

    @property
    @abstractmethod
    def native(self) -> Any:
        """The raw client."""

    @abstractmethod
    async def open(self) -> None:
        """Connect once. Raises ConnectionFailed (naming host and waiting time) or AuthenticationFailed."""

    @abstractmethod
    async def close(self) -> None:
        """Close what `open` opened, within a few seconds, broker there or not. A second call is a no-op."""

    @abstractmethod
    async def declare(self, topology: Topology) -> None:
        """Create, or verify, or (mode `off`) only remember topics and groups; idempotent.

        Raises ConfigurationError naming both sides when the broker's record of partitions or order differs (16),
        TopicNotFound in mode `verify` when something is missing.
        """

    @abstractmethod
    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Receipt | PublishError]:
        """Store each durably; one result each, in order, never an exception for a single item.

        Never called at once for two batches with messages of the same partition of an ordered topic; within a
        batch, no message of a key is stored after an earlier one of that key failed (7; what RabbitMQ can keep of
        this is in docs/decisions/0005). A PublishUncertain
        result means that the fate is unknown; any other error that the broker does not have it. Cancelling leaves
        the fates unknown and the connection whole.
        """

    def publishes_once(self, topic: TopicSpec) -> Capability:
        """Whether `Outgoing.once` holds for this topic, where that is not the same for all."""
        del topic
        return self.capabilities.idempotent_publish

    @abstractmethod
    def consumer(self, subscription: Subscription, ownership: Ownership) -> Consumer:
        """A new member of the group; the first `receive` joins it."""

    @abstractmethod
    async def reply_inbox(self) -> ReplyInbox:
        """An inbox of this process, ready to receive."""

    @abstractmethod
    async def reply(self, replies: Sequence[tuple[str, Message]]) -> Sequence[PublishError | None]:
        """Send each reply to its address. An address that no inbox of ours could have is refused (19), and so is, by
        MessageTooLarge, a reply beyond `max_message_bytes`: its requester is told instead.

        A reply whose inbox is gone is dropped by the broker: that is no error.
        """

    @abstractmethod
    def dead_letters(self, group: GroupSpec) -> DeadLetterStore:
        """The dead letters of this group."""

    @abstractmethod
    async def groups(self) -> Sequence[GroupInfo]:
        """The groups of this namespace that the broker has for the topics this adapter has declared."""

    @abstractmethod
    async def delete_group(self, group: GroupSpec) -> None:
        """Delete the group and all that is kept for it, its dead letters too. Absent is no error."""

    # The generations of a topic (16): implemented together, by an adapter that declares the capability `generations`.
    # A topic of another generation than 1 is declared, published to, consumed and deleted as any other topic, under
    # names of its own.

    async def generations(self, topic: TopicSpec) -> Sequence[TopicSpec]:
        """The generations that the broker's record has, oldest first; the last is the one to write to.

        With the recorded partitions and order, all else as in `topic`. None where the topic does not exist. Cheap
        enough to be asked every few seconds. Raises ConnectionFailed.
        """
        del topic
        return ()

    async def begin_generation(self, topic: TopicSpec) -> None:
        """From now on `generations` has this one last. It is declared, with its groups. Beginning twice is no error.

        Raises ConfigurationError where the record has this number with other partitions or order.
        """
        raise NotImplementedError

    async def end_generation(self, topic: TopicSpec) -> None:
        """Record durably that nobody writes to this former generation any more. Ending twice is no error."""
        raise NotImplementedError

    async def ended(self, topic: TopicSpec) -> bool:
        """Whether `end_generation` was called: what is published to it from now on lies behind everything else."""
        raise NotImplementedError

    async def finish(self, group: GroupSpec, partition: int) -> bool:
        """Record durably that the group has handled this partition of a former generation.

        False, and nothing is recorded, where the broker knows of messages in it that are not handled.
        """
        raise NotImplementedError

    async def finished(self, group: GroupSpec) -> Collection[int]:
        """The partitions for which `finish` was called."""
        raise NotImplementedError

    @abstractmethod
    async def health(self) -> BrokerHealth:
        """Never raises; bounded by a second: the broker is asked for HEALTH_TIMEOUT at most."""
