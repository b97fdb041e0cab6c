"""Membership in a consumer group: join, heartbeats, fenced commits, leaving. Spoken as Kafka's group protocol.

One task keeps the membership; while it waits in a join, everything that is owned goes on, commits and heartbeats
included, on another connection. A member that was silent for as long as its session has lost all by its own clock,
which is never later than by the broker's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from messaging.adapter import Lease
from messaging.errors import ConnectionFailed, LeaseLost, MessagingError, is_fatal
from messaging.shielded import shielded
from messaging_kafka import assignor, library
from messaging_kafka.assignor import Claim, Share
from messaging_kafka.connection import check, translate
from messaging_kafka.library import Errors, KafkaError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from messaging_kafka.brokers import Brokers, Committed
    from messaging_kafka.library import Place

logger = logging.getLogger("messaging")

HURRY = 0.05
"""Seconds between heartbeats while others may still be joining."""
HURRIED_FOR = 3.0
"""Seconds after a change of the group for which more may follow."""
LEAVE_TIMEOUT = 2.0
PATIENCE = 10
"""Sessions for which the group waits, when it changes, for members that live and do not join again: longer than any of
them waits for an answer to its join. Silent ones are out after their session.
"""
_MARGIN = 5.0
"""Seconds that an answer to a join may take beyond the broker's own bounds."""

_LOST = (Errors.UnknownMemberIdError, Errors.IllegalGenerationError)
_numbers = count(1)
_UNANSWERED = (
    Errors.KafkaConnectionError,
    Errors.NodeNotReadyError,
    Errors.RequestTimedOutError,
    ConnectionFailed,
)


class Membership:
    """One member of one group.

    `changed(share)` is awaited with each new share; `lost(reason)` is called when everything is lost. Both come from
    the task that keeps the membership. `claim` says what is owned now; a leader asks `kinds` what there is to
    deal out.
    """

    def __init__(
        self,
        brokers: Brokers,
        group: str,
        topics: Sequence[str],
        kinds: Callable[[], Awaitable[Sequence[range]]],
        places: Callable[[int], Sequence[Place]],
        *,
        where: str,
        changed: Callable[[Share], Awaitable[None]],
        lost: Callable[[str], None],
        claim: Callable[[], tuple[int, ...]],
    ) -> None:
        self._brokers = brokers
        self._link = brokers.link
        self._settings = brokers.link.settings
        self._group = group
        # A connection of its own: Kafka answers in turn, and a join keeps what is sent behind it waiting, also the
        # heartbeats of another member of the same program.
        self._channel = f"group {group} {next(_numbers)}"
        self._topics = list(topics)
        self._kinds = kinds
        self._places = places
        self._where = where
        self._changed = changed
        self._lost = lost
        self._claim = claim
        self._member = ""
        self._asking: asyncio.Task[Any] | None = None
        """The request that makes us a member: until it is answered, nobody knows of which name."""
        self._joined_generation = -1
        self._rejoin = asyncio.Event()
        self._settled = asyncio.Event()
        self._joins = 0
        """How many joins came to their end."""
        self._hurry_until = 0.0
        self._undisturbed = 0.0
        """When the group was not about to change for the last time, as far as is known."""
        self._task: asyncio.Task[None] | None = None
        self.generation = -1
        self.lease = Lease(0.0)
        """One for everything that is owned."""
        self.error: MessagingError | None = None
        """Why the group was not reached the last time."""
        self.fatal: MessagingError | None = None
        """Why the membership has ended for good."""
        self.busy = False
        """What the group is told with the next join: this member has no room for messages."""
        self.alone = True
        """Whether the group had no other member when it was last joined, by this one or not at all."""

    @property
    def joined(self) -> bool:
        return self.generation >= 0

    # --- keep --------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Join, and wait for those who start at the same time; then keep the membership until `leave`.

        Raises ConnectionFailed, AuthenticationFailed or ConfigurationError.
        """
        await self._join(patient=True)
        self._task = asyncio.create_task(self._keep(), name="messaging-kafka-membership")

    def check(self) -> None:
        """Raise what has ended the membership for good."""
        if self.fatal is not None:
            raise self.fatal
        if self._task is not None and self._task.done():
            self._task.result()

    async def revive(self) -> None:
        """One attempt to reach the group after an error. Raises what goes wrong."""
        if self.joined:
            await self._beat()
        else:
            self._rejoin.set()
        if self.error is not None:
            raise self.error

    def rejoin(self) -> None:
        """Join again soon: what is owned has changed."""
        self._rejoin.set()

    async def _keep(self) -> None:
        try:
            while True:
                await self._pause()
                if self._rejoin.is_set() or not self.joined:
                    await self._join_again()
                else:
                    await self._beat()
        except MessagingError as error:
            self.fatal = error
            self._lost(str(error))

    async def _pause(self) -> None:
        hurried = time.monotonic() < self._hurry_until and self.error is None
        interval = min(HURRY, self._settings.heartbeat) if hurried else self._settings.heartbeat
        if self.joined:
            interval = min(interval, max(0.05, self.lease.deadline - time.monotonic()))
        if self._rejoin.is_set() and self.error is None:
            return
        try:
            async with asyncio.timeout(interval):
                await self._rejoin.wait() if self.error is None else await asyncio.Event().wait()
        except TimeoutError:
            pass

    async def _join_again(self) -> None:
        try:
            await self._join()
        except ConnectionFailed as error:
            self._failed(error)

    async def _beat(self) -> None:
        sent = time.monotonic()
        try:
            await self._heartbeat(sent, self._channel)
            self._undisturbed = sent
        except Errors.RebalanceInProgressError:
            self._rejoin.set()
        except _LOST:
            self.drop("the group goes on without it: it was silent for too long, or was put out")
            return
        except (KafkaError, MessagingError) as error:
            self._link.forget_coordinator(self._group, error)
            self._failed(translate(error, f"heartbeat of {self._where}", self._settings.address))
            return
        self._alive(sent)
        self.error = None

    async def _heartbeat(self, sent: float, channel: str) -> None:
        """Raises aiokafka's errors, and ours."""
        response = await self._link.to_coordinator(
            self._group,
            library.Heartbeat(self._group, self.generation, self._member),
            channel=channel,
            within=max(0.2, min(self._settings.operation_timeout, self.lease.deadline - sent)),
        )
        check(response.error_code)

    async def _beat_meanwhile(self) -> None:
        """While a join is waited for: the group may wait for a dead member for longer than the lease lasts.

        Ends with the lease, if the broker is not heard of any more.
        """
        while True:
            await asyncio.sleep(self._settings.heartbeat)
            sent = time.monotonic()
            try:
                await self._heartbeat(sent, library.COMMIT_CHANNEL)
            except Errors.RebalanceInProgressError:  # said to members only
                pass
            except (KafkaError, MessagingError) as error:
                if isinstance(error, _UNANSWERED) and self.lease.deadline <= time.monotonic():
                    return
                continue  # the join will tell what is wrong
            self._alive(sent)

    def _alive(self, sent: float) -> None:
        """The broker counted this member at that time; it goes on without one that does not join again in time."""
        if self.lease.deadline <= time.monotonic() and self._claim():
            # Some of it may have been given up here because of it: nobody else would deliver that again.
            self.lease = Lease(0.0)
            self._lost("its lease ended before the group was heard of again")
            self._rejoin.set()
        session = self._settings.session
        until = min(sent + session, self._undisturbed + PATIENCE * session)
        self.lease.deadline = max(self.lease.deadline, until)

    def _failed(self, error: MessagingError) -> None:
        if is_fatal(error):
            raise error
        self.error = error
        if self.joined and self.lease.deadline <= time.monotonic():
            self.drop("its session ended before the group was reached again")

    def drop(self, reason: str) -> None:
        """Everything is lost; a new membership begins with the next join."""
        self.generation, self._member = -1, ""
        self.lease.deadline = min(self.lease.deadline, time.monotonic())
        self.lease = Lease(0.0)
        self._lost(reason)
        self._rejoin.set()

    # --- join --------------------------------------------------------------------------------------------------

    async def _join(self, *, patient: bool = False) -> None:
        """One join; a generation that is over before its shares are dealt is followed by the next at once.

        `patient`: whoever is alone gives others a moment, so that nothing has to be given up again.
        """
        self._settled.clear()
        try:
            with self._link.translated(f"joining group {self._group} for {self._where}"):
                while True:
                    self._rejoin.clear()
                    share = await self._join_once()
                    if share is not None and not (patient and self.alone and await self._joined_by_others()):
                        break
        finally:
            self._joins += 1
            self._settled.set()
        self._hurry_until = time.monotonic() + HURRIED_FOR
        try:
            await self._changed(share)
        except LeaseLost as error:  # the group went on meanwhile: transient, as every lost session is
            self._rejoin.set()
            raise ConnectionFailed(str(error)) from error
        except MessagingError:
            self._rejoin.set()  # what could not be taken is dealt out again
            raise

    async def _joined_by_others(self) -> bool:
        """Whether somebody else comes within the delay for joining."""
        until = time.monotonic() + self._settings.join_delay
        while time.monotonic() < until:
            await asyncio.sleep(min(HURRY, self._settings.join_delay))
            try:
                await self._heartbeat(time.monotonic(), self._channel)
            except (Errors.RebalanceInProgressError, *_LOST):
                return True
        return False

    async def _join_once(self) -> Share | None:
        settings = self._settings
        sent = time.monotonic()
        claim = Claim(self._claim(), self._joined_generation, self.busy)
        metadata = library.MemberMetadata(1, self._topics, assignor.encode_claim(claim)).encode()
        session = int(settings.session * 1000)
        request = library.JoinGroup(
            self._group,
            session,
            PATIENCE * session,
            self._member,
            None,
            "consumer",
            [(assignor.NAME, metadata)],
        )
        patience = 2 * settings.session + _MARGIN
        try:
            response = await self._waited(request, patience)
            if isinstance(library.failure_of(response.error_code), Errors.MemberIdRequired):
                self._member = response.member_id
                return None
            check(response.error_code)
            self._member, self.generation = response.member_id, response.generation_id
            self._undisturbed = sent
            self._alive(sent)
            self.alone = len(response.members) == 1
            leading = response.leader_id == response.member_id
            shares = self._deal(response, await self._kinds()) if leading else []
            sent = time.monotonic()
            synced = await self._waited(
                library.SyncGroup(self._group, self.generation, self._member, None, shares), patience
            )
            check(synced.error_code)
        except Errors.RebalanceInProgressError:
            return None
        except _LOST:
            self.drop("the group went on without it")
            return None
        except (KafkaError, MessagingError) as error:
            self._link.forget_coordinator(self._group, error)
            self._rejoin.set()
            raise
        self._joined_generation = self.generation
        self._undisturbed = sent
        self._alive(sent)
        self.error = None
        if not synced.member_assignment:
            return Share()
        assignment = library.MemberAssignment.decode(synced.member_assignment)
        return assignor.decode_share(assignment.user_data)

    async def _to_group(self, request: Any, within: float) -> Any:
        return await self._link.to_coordinator(self._group, request, channel=self._channel, within=within)

    async def _waited(self, request: Any, within: float) -> Any:
        """The answer to what the whole group is waited for with: for a silent member, as long as its session."""
        if not self._member:
            self._asking = asyncio.create_task(self._to_group(request, within), name="messaging-kafka-join")
            response = await shielded(self._asking)
            self._asking = None
            return response
        if not self.joined:
            return await self._to_group(request, within)
        answer = asyncio.create_task(self._to_group(request, within), name="messaging-kafka-join")
        beating = asyncio.create_task(self._beat_meanwhile(), name="messaging-kafka-heartbeat")
        try:
            _ = await asyncio.wait((answer, beating), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            beating.result()
            self._link.drop_channel(self._channel)
            raise Errors.KafkaConnectionError(
                "no answer to this, nor to heartbeats, until the session was over"
            )
        finally:
            for task in (answer, beating):
                task.cancel()
            _ = await asyncio.wait((answer, beating))
            for task in (answer, beating):
                if not task.cancelled():
                    task.exception()

    def _deal(self, response: Any, kinds: Sequence[range]) -> list[tuple[str, bytes]]:
        claims: dict[str, Claim] = {}
        for member in response.members:
            metadata = library.MemberMetadata.decode(member[-1])
            claims[member[0]] = assignor.decode_claim(metadata.user_data)
        return [(member, self._assignment(share)) for member, share in assignor.deal(claims, kinds).items()]

    def _assignment(self, share: Share) -> bytes:
        """Other tools show the partitions; members read the units."""
        partitions: dict[str, list[int]] = {}
        for unit in sorted(share.units):
            for topic, partition in self._places(unit):
                partitions.setdefault(topic, []).append(partition)
        user_data = assignor.encode_share(share)
        encoded: bytes = library.MemberAssignment(1, list(partitions.items()), user_data).encode()
        return encoded

    # --- commit, leave -----------------------------------------------------------------------------------------

    async def commit(self, positions: Mapping[Place, Committed]) -> None:
        """Commit as this member. Raises LeaseLost when the group goes on without it, ConnectionFailed."""
        until = time.monotonic() + self._settings.operation_timeout
        lease = self.lease
        while True:
            if not self.joined or self.lease is not lease:
                raise LeaseLost(f"{self._where}: this process is no member of its group any more")
            generation = self.generation
            joins = self._joins if self._settled.is_set() else -1
            sent = time.monotonic()
            try:
                await self._brokers.commit(
                    self._group, positions, generation=generation, member=self._member, within=until - sent
                )
            except (Errors.RebalanceInProgressError, *_LOST) as error:
                joined = await self._joined_anew(joins, until)
                if joined and (self.generation != generation or not isinstance(error, _LOST)):
                    continue
                if isinstance(error, _LOST):
                    self.drop("the group refused its commit")
                    raise LeaseLost(
                        f"{self._where}: Kafka refused the commit, the group goes on without it"
                    ) from error
                raise self._uncommitted(error) from error
            except KafkaError as error:
                raise self._uncommitted(error) from error
            if self.lease.deadline > time.monotonic():
                self._alive(sent)
            return

    async def _joined_anew(self, joins: int, until: float) -> bool:
        """Wait for the end of a join after `joins` of them; whether the same commit may be taken now.

        Between its join and the share that it is dealt, a member has the new generation, and its commits are refused.
        """
        if self._settled.is_set() and self._joins == joins:
            # The broker may be ahead of us: the heartbeat will say so.
            self._rejoin.set()
            self._settled.clear()
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._settled.wait()
        except TimeoutError:
            return False
        return time.monotonic() < until

    def _uncommitted(self, error: Exception) -> MessagingError:
        return translate(error, f"committing for {self._where}", self._settings.address)

    async def leave(self) -> None:
        """End the membership; what is owned must have been committed. Bounded, and no error if it fails."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        try:
            await self._learn_name()
        finally:
            self._link.drop_channel(self._channel)
        if not self._member:
            return
        member, self._member, self.generation = self._member, "", -1
        try:
            await self._link.to_coordinator(
                self._group, library.LeaveGroup(self._group, member), within=LEAVE_TIMEOUT
            )
        except (KafkaError, MessagingError) as error:
            logger.warning(
                "Leaving %s on Kafka failed: %s. Its partitions go to others after %g s.",
                self._where,
                error,
                self._settings.session,
            )

    async def _learn_name(self) -> None:
        """Of a join that was cut off: Kafka has a member then that it waits for, and that cannot leave without it."""
        asking, self._asking = self._asking, None
        if asking is None:
            return
        try:
            await asyncio.wait((asking,), timeout=LEAVE_TIMEOUT)
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                self._member = asking.result().member_id
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
