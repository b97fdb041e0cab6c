"""Looking after a reader: whether answers come for what it asks, and a new start where none do (25).

An error is told to the reader and tried again by whoever reads. This is for what no error tells: a request that nobody
sends any more. It costs nothing while answers come.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from messaging.errors import ConnectionFailed, MessagingError

if TYPE_CHECKING:
    from messaging_kafka.fetching import Fetcher
    from messaging_kafka.partitions import Partitions
    from messaging_kafka.settings import KafkaSettings
    from messaging_kafka.source import Source

logger = logging.getLogger("messaging")

GROWTH_PERIOD = 30.0
"""Seconds between looks at the partitions of a topic."""
LOOKS = 2
"""Looks in a row without an answer: after one, this process may have been frozen itself."""


async def watch(fetcher: Fetcher, where: str, settings: KafkaSettings) -> None:
    """Start the fetcher again where it stands still while its brokers have something; until cancelled.

    The reader's next `receive` raises ConnectionFailed, so that it is counted as a new connection.
    """
    period = settings.operation_timeout + settings.fetch_wait  # an answer, or an error, comes sooner
    heard: dict[Source, int] = {}
    silent: dict[Source, int] = {}
    while True:
        await asyncio.sleep(period)
        before, heard = heard, {source: source.heard for source in fetcher.asking()}
        silent = {
            source: silent.get(source, 0) + 1
            for source, count in heard.items()
            if before.get(source) == count
        }
        still = [source for source, looks in silent.items() if looks >= LOOKS]
        if still:
            silent.clear()
            await _look_after(fetcher, still, where)


async def watch_growth(partitions: Partitions, fetcher: Fetcher) -> None:
    """Look whether somebody has added partitions to the topic; until cancelled.

    The reader is told where they cannot be read, or may not be; what goes on meanwhile is looked at again.
    """
    while True:
        await asyncio.sleep(GROWTH_PERIOD)
        try:
            if await partitions.grown():
                partitions.membership.rejoin()
        except ConnectionFailed:
            continue
        except MessagingError as error:
            fetcher.tell(error)


async def _look_after(fetcher: Fetcher, still: list[Source], where: str) -> None:
    try:
        waiting = await fetcher.behind(still)
    except MessagingError as error:
        await fetcher.restart(error)
        return
    if not waiting:
        return
    logger.error(
        "Reading %s stood still while Kafka had %d messages for it: it is started again",
        where,
        waiting,
        extra={"waiting": waiting},
    )
    await fetcher.restart(
        ConnectionFailed(
            f"reading {where} stood still while Kafka had {waiting} messages for it; started again"
        )
    )
