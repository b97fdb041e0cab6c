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
    from messaging_rabbitmq.settings import RabbitMQSettings

ANSWER = 5.0
"""Seconds for which a queue may be silent: one that has a leader answers within milliseconds."""


async def answers(settings: RabbitMQSettings, queue: str) -> bool:
    """Whether the queue has given a message, or said that it has none, in time. True where it cannot be asked.

    What it gives goes back to it with the connection, to its place.
    """
    link = Link(settings, "asking")
    try:
        channel = await link.channel()
        with translated(f"asking queue {queue}", link.address):
            try:
                async with asyncio.timeout(ANSWER):
                    await channel.basic_get(queue)
            except TimeoutError:
                return False
    except (
        MessagingError
    ):  # no permission to read, too many connections, or a broker that is away: others will tell
        return True
    finally:
        await link.close()
    return True
