"""Keys to partitions, as Kafka's Java client does it, so that foreign publishers can partition alike (19)."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, unpack_from

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF
_WORDS = [Struct(f"<{count}I") for count in range(17)]
_LONGEST_KEPT = 64
"""Characters or bytes: the partitions of longer keys are not remembered."""
_MOST_KEPT = 16_384


def murmur2(data: bytes) -> int:
    """The hash of Kafka's Java client, as a signed number of 32 bits."""
    length = len(data)
    count = length >> 2
    hashed = _SEED ^ length
    words = _WORDS[count].unpack_from(data) if count < 17 else unpack_from(f"<{count}I", data)
    for word in words:
        mixed = word * _M & _MASK
        hashed = (hashed * _M ^ (mixed ^ mixed >> 24) * _M) & _MASK
    if length & 3:
        hashed = (hashed ^ int.from_bytes(data[count << 2 :], "little")) * _M & _MASK
    hashed = (hashed ^ hashed >> 13) * _M & _MASK
    hashed ^= hashed >> 15
    return hashed - 0x100000000 if hashed & 0x80000000 else hashed


def partition_of(key: str | bytes, partitions: int) -> int:
    """The partition of a key, in `range(partitions)`. A str and its UTF-8 bytes share one."""
    return partitions_of_keys(partitions)[key]


class Partitions(dict["str | bytes", int]):
    """The partition of each key, in `range(partitions)`; of keys that are not too many or too long, remembered."""

    def __init__(self, partitions: int) -> None:
        super().__init__()
        self._partitions = partitions

    def __missing__(self, key: str | bytes) -> int:
        found = (murmur2(key.encode() if isinstance(key, str) else key) & 0x7FFFFFFF) % self._partitions
        if len(key) <= _LONGEST_KEPT:
            if len(self) >= _MOST_KEPT:
                self.clear()
            self[key] = found
        return found


partitions_of_keys = lru_cache(maxsize=32)(Partitions)
"""Those of topics with so many partitions."""
