"""A group's position beyond the end of a stream, as after `XGROUP SETID`: nothing new is handed out there.

Members of an ordered group put it back, where they know what was handed out: nobody else reads their partitions.
Elsewhere the broker keeps no trace of it, so it is told (25, 26) and left to an operator.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from messaging_redis.ownership import NEW
from messaging_redis.scripts import PUT_BACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from messaging.adapter import GroupSpec
    from messaging_redis.connection import Connection
    from messaging_redis.keys import GroupKeys
    from messaging_redis.line import Argument
    from messaging_redis.ownership import Partition

logger = logging.getLogger("messaging")


async def put_back(
    connection: Connection, group: GroupSpec, keys: GroupKeys, partitions: Sequence[Partition]
) -> None:
    """Look at the positions of the group on these partitions, which are ours; no read of them may be under way.

    An adopted group is left as it is: other programs may read as it. Raises ConnectionFailed.
    """
    pairs = [
        (partition, source)
        for partition in partitions
        for source in partition.sources
        if source.cursor == NEW and source.wake_after
    ]
    if not pairs:
        return
    arguments: list[Argument] = [keys.name]
    for partition, source in pairs:
        known = source.certain and group.native is None
        arguments += [partition.number, partition.key, source.seen if known else ""]
    streams = [source.stream for _, source in pairs]
    replies = await connection.run(PUT_BACK, [keys.leases, *streams], arguments)
    for (_, source), (position, last, done) in zip(pairs, replies, strict=True):
        if not position:
            continue
        # What is there already is not handed out, so it must not wake the reader again and again.
        source.wake_after = source.seen if done else last.decode()
        if done:
            logger.error(
                "The position %s of group %s was beyond the end of %s on Redis: somebody set it. It was put back to "
                "%s, the last that was handed out; nothing is left out",
                position.decode(),
                group.name,
                source.stream,
                source.seen,
                extra={"topic": group.topic.name, "group": group.name, "stream": source.stream},
            )


def stuck(group: GroupSpec, name: str, streams: Sequence[bytes], address: str) -> str | None:
    """What health says of streams where the position of the group is beyond the end."""
    if not streams:
        return None
    listed = ", ".join(stream.decode("utf-8", "replace") for stream in streams)
    return (
        f"group {group.name} of topic {group.topic.name}: Redis at {address} hands out nothing new of {listed}: "
        f"somebody set the group's position beyond the end. Set it to the last id that was handled, for each stream: "
        f"XGROUP SETID <stream> {name} <id>"
    )
