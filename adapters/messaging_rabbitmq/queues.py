"""Queues of a group that are made when they are first needed: tiers, dead letters, marks.

RabbitMQ records a quorum queue before it has a leader, and writes where the queue's log is about a second after it
(seen on 3.10.8 and 4.0.5; rabbitmq-server #10718). Killed in between, it comes back with a queue that is there for
every declaration and that nobody leads: what it had confirmed is gone, and it never confirms anything again. Hence
two precautions: what is new is `sealed` before it is used, and a tier or a queue of marks that does not answer is
replaced by a spare.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from messaging.errors import ConfigurationError, ConnectionFailed
from messaging_rabbitmq.answering import answers
from messaging_rabbitmq.arguments import quorum
from messaging_rabbitmq.tiers import tier_arguments, with_spares

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from aiormq.abc import AbstractChannel

    from messaging.adapter import GroupSpec, TopologyMode
    from messaging_rabbitmq.connection import Link
    from messaging_rabbitmq.names import Names
    from messaging_rabbitmq.settings import RabbitMQSettings

logger = logging.getLogger("messaging")

SEALS = 1 << 32
"""Seals are called like tiers, so that permissions hold, of more milliseconds than any tier."""
SEAL_EXPIRES = 60.0
"""Seconds after which the broker deletes a seal whose program died before it did."""
REPLACED = (
    "another takes its place. If the broker was killed while it made the queue, it never will: it is empty then, and "
    "can be deleted."
)


class Queues:
    """What is known of them. `mode` tells whether a group's may be made."""

    def __init__(
        self, link: Link, names: Names, settings: RabbitMQSettings, mode: Callable[[GroupSpec], TopologyMode]
    ) -> None:
        self._link = link
        self._names = names
        self._settings = settings
        self._mode = mode
        self._known: set[str] = set()
        self._seen: set[str] = set()
        """Those that were there once: missing later, somebody has deleted them."""
        self._answering: set[str] = set()
        self._silent: set[str] = set()
        """Those that did not answer: kept over connections, for each must be waited for."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One for each queue: a silent one holds up nothing but what needs it."""

    def forget(self) -> None:
        """Check again what was known to exist."""
        self._known.clear()
        self._answering.clear()

    def exists(self, queue: str) -> None:
        """It was declared."""
        self._known.add(queue)
        self._seen.add(queue)

    def unsure(self, queue: str) -> None:
        """It has not confirmed what was sent to it: ask it again."""
        self._answering.discard(queue)

    def deleted(self, queues: Collection[str]) -> None:
        """We have deleted them."""
        for known in (self._known, self._seen, self._answering, self._silent):
            known.difference_update(queues)

    async def ready(self, group: GroupSpec, queue: str, arguments: dict[str, Any]) -> bool:
        """The queue exists; it is made where it is not there.

        False where the topology setting forbids making it and it is not there.
        """
        async with self._locks[queue]:
            if queue in self._known:
                return True
            if not await self._has(queue):
                if self._mode(group) != "declare":
                    return False
                async with self._link.throwaway(f"declaring queue {queue}") as channel:
                    await self.declare(channel, queue, arguments)
                    await self.seal(channel, group)
                self._tell_if_lost(group, queue)
            self.exists(queue)
            return True

    async def declare(self, channel: AbstractChannel, queue: str, arguments: dict[str, Any]) -> None:
        """Raises ConfigurationError where it exists with other arguments."""
        try:
            await channel.queue_declare(queue, durable=True, arguments=arguments)
        except ChannelPreconditionFailed as error:
            raise ConfigurationError(
                f"queue {queue!r} at RabbitMQ {self._link.address} exists with other arguments than this program "
                f"asks for: {error}. Change the setting (retention?), or delete the group."
            ) from error

    async def seal(self, channel: AbstractChannel, group: GroupSpec) -> None:
        """Have the broker write down the quorum queues that it has just made.

        It does with the next one: a queue of no use is made, and deleted. Of 7 brokers that were killed right after
        it, all had kept the queue before it and its message; of 6 without it, killed within 0.9 s, none had.
        """
        passing = self._names.tier(group, SEALS + secrets.randbits(32))
        await channel.queue_declare(
            passing, durable=True, arguments=quorum(expires=round(SEAL_EXPIRES * 1000))
        )
        await channel.queue_delete(passing)

    async def _has(self, queue: str) -> bool:
        async with self._link.throwaway(f"looking for queue {queue}") as channel:
            try:
                await channel.queue_declare(queue, passive=True)
            except ChannelNotFoundEntity:
                return False
        return True

    def _tell_if_lost(self, group: GroupSpec, queue: str) -> None:
        if queue in self._seen:
            logger.warning(
                "Queue %r of group %s, topic %s, was deleted on RabbitMQ at %s and is made anew: what it held is lost",
                queue,
                group.name,
                group.topic.name,
                self._link.address,
                extra={"broker": self._link.address, "topic": group.topic.name, "group": group.name},
            )

    async def dead(self, group: GroupSpec) -> str:
        """The queue of dead letters. Raises ConfigurationError where it is not there and may not be made."""
        queue = self._names.dead(group)
        if await self.ready(group, queue, quorum()):
            return queue
        raise ConfigurationError(
            f"group {group.name} of topic {group.topic.name} has no queue {queue!r} for dead letters at RabbitMQ "
            f"{self._link.address}: declare the group"
        )

    async def tier(self, group: GroupSpec, milliseconds: int) -> str | None:
        """A queue for the tier that answers; None where it may not be made.

        Raises ConnectionFailed where neither the tier nor one of its spares answers.
        """
        times = with_spares(milliseconds)
        return await self._one_of(
            group, {self._names.tier(group, time): tier_arguments(self._names, group, time) for time in times}
        )

    async def marks(self, group: GroupSpec, queues: Sequence[str]) -> str | None:
        """Of these, a queue of marks that answers; None where there is none and it may not be made.

        Raises ConnectionFailed where none answers: a message that nobody has marked is not run.
        """
        queue = await self._one_of(group, {queue: quorum() for queue in queues})
        if queue is None and queues[0] in self._silent:
            raise self._all_silent(group, queues[0])
        return queue

    async def _one_of(self, group: GroupSpec, queues: Mapping[str, dict[str, Any]]) -> str | None:
        """The first that answers of a queue and its spares, each with its arguments.

        None is deleted: its nodes may be away, and come back with what it holds.
        """
        for queue, arguments in queues.items():
            if queue in self._answering:
                return queue
            if queue not in self._silent:
                if not await self.ready(group, queue, arguments):
                    return None
                if await self._answers(group, queue):
                    return queue
        self._silent.difference_update(queues)  # asked again with the next: the broker may only be slow
        raise self._all_silent(group, next(iter(queues)))

    def _all_silent(self, group: GroupSpec, queue: str) -> ConnectionFailed:
        return ConnectionFailed(
            f"queue {queue!r} of group {group.name}, topic {group.topic.name}, does not answer at RabbitMQ "
            f"{self._link.address}, nor do its spares"
        )

    async def _answers(self, group: GroupSpec, queue: str) -> bool:
        """Asked once a connection."""
        async with self._locks[queue]:
            if queue in self._answering or queue in self._silent:
                return queue in self._answering
            if await answers(self._settings, queue):
                self._answering.add(queue)
                return True
            self._silent.add(queue)
        logger.warning(
            "Queue %r of group %s, topic %s, does not answer at RabbitMQ %s: %s",
            queue,
            group.name,
            group.topic.name,
            self._link.address,
            REPLACED,
            extra={"broker": self._link.address, "topic": group.topic.name, "group": group.name},
        )
        return False
