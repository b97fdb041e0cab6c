"""Whether a queue answers.

RabbitMQ records a quorum queue before it has a leader. Killed in between, it comes back with a queue that is there for
every declaration, and that nobody leads: it confirms nothing, for ever, and gives nothing (seen on 3.10.8;
rabbitmq-server #10718). Whoever asks it for a message loses the whole connection after 65 s, so it is asked on one of
its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from messaging.errors import MessagingError
from messaging_rabbitmq.connection import Link, translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging_rabbitmq.settings import RabbitMQSettings

ANSWER = 5.0
"""Seconds for which a queue may be silent: one that has a leader answers within milliseconds."""


async def answers(settings: RabbitMQSettings, queue: str) -> bool:
    """Whether the queue has told that it has messages, or none, in time. True where it cannot be asked.

    If it gives one that has just come, that goes back to it with the connection, to its place.
    """
    return not await silent(settings, [queue])


async def silent(settings: RabbitMQSettings, queues: Sequence[str]) -> Sequence[str]:
    """Those that do not answer, all asked at the same time. One that refuses to be asked answers."""
    if not queues:
        return ()
    link = Link(settings, "asking")
    try:
        answered = await asyncio.gather(*(_answers(link, queue) for queue in queues))
        if not all(answered):
            link.abort()  # closing it, the broker would wait for those that do not answer
    finally:
        await link.close()
    return [queue for queue, answer in zip(queues, answered, strict=True) if not answer]


async def _answers(link: Link, queue: str) -> bool:
    try:
        channel = await link.channel()
        with translated(f"asking queue {queue}", link.address):
            try:
                async with asyncio.timeout(ANSWER):
                    # Taken, a message would be delivered once more, and from a tier, after too often, early.
                    if not (await channel.queue_declare(queue, passive=True)).message_count:
                        await channel.basic_get(queue)
            except TimeoutError:
                return False
    except (
        MessagingError
    ):  # no permission to read, too many connections, or a broker that is away: others will tell
        return True
    return True
