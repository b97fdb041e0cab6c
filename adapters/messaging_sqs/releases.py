"""What clean releases have added to the service's count of an ordered group's messages (2).

SQS counts a message that a member gives back when it leaves like one whose member died, and no copy of a FIFO message
keeps its place. So who leaves writes into tags of the queue how much of the count means nothing, for those messages
that the next member would suspect. A tag holds one such number, and hashes of the messages that it is for.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "messaging-released-"
MOST_TAGS = 10
"""A queue has 50 at most; the oldest make room."""
_HASH = 4
_PER_TAG = 62
"""Hashes that fit into the 256 characters of a value, behind the number."""
_LONGEST = 10


def hash_of(message_id: str) -> str:
    return b64encode(hashlib.sha256(message_id.encode()).digest()[:3]).decode()


def written(uncounted: Mapping[str, int], now: float, unique: str) -> dict[str, str]:
    """The tags that keep these numbers by message id; of too many, the rarest numbers are left out."""
    by_number: dict[int, list[str]] = defaultdict(list)
    for message_id, number in uncounted.items():
        by_number[number].append(hash_of(message_id))
    values = [
        f"{number}:{''.join(hashes[start : start + _PER_TAG])}"
        for number, hashes in by_number.items()
        for start in range(0, len(hashes), _PER_TAG)
    ]
    values.sort(key=len, reverse=True)
    return {f"{PREFIX}{int(now * 1000)}-{unique}-{at}": value for at, value in enumerate(values[:MOST_TAGS])}


def read(tags: Mapping[str, str]) -> dict[str, int]:
    """The numbers by the hashes of message ids. What nobody of us wrote is left out."""
    uncounted: dict[str, int] = {}
    for name, value in tags.items():
        number, _, hashes = value.partition(":")
        if not name.startswith(PREFIX) or not number.isdecimal() or len(number) > _LONGEST:
            continue
        for start in range(0, len(hashes), _HASH):
            known = hashes[start : start + _HASH]
            uncounted[known] = max(int(number), uncounted.get(known, 0))
    return uncounted


def surplus(tags: Mapping[str, str], new: int) -> list[str]:
    """The oldest of these tags that make room for so many new ones."""
    ours = sorted(name for name in tags if name.startswith(PREFIX))
    return ours[: max(len(ours) + new - MOST_TAGS, 0)]
