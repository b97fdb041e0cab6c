import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.partition import murmur2, partition_of

# What Kafka 4.1's Java client computes: key, hash, positive % 8, positive % 12.
VECTORS = [
    ("21", -973932308, 4, 0),
    ("foobar", -790332482, 6, 6),
    ("a-little-bit-long-string", -985981536, 0, 8),
    ("a-little-bit-longer-string", -1486304829, 3, 11),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971, 5, 5),
    ("abc", 479470107, 3, 3),
    ("", 275646681, 1, 9),
    ("customer-7", -1283830537, 7, 7),
    ("ключ", 2122343024, 0, 8),
]


@pytest.mark.parametrize(("key", "hashed", "of_8", "of_12"), VECTORS)
def test_a_key_goes_where_kafkas_java_client_puts_it(key: str, hashed: int, of_8: int, of_12: int) -> None:
    assert murmur2(key.encode()) == hashed
    assert partition_of(key, 8) == of_8
    assert partition_of(key.encode(), 12) == of_12


def reference(data: bytes) -> int:
    """The Java source, line by line."""
    mask = 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    for i in range(len(data) // 4):
        k = int.from_bytes(data[i * 4 : i * 4 + 4], "little")
        k = k * 0x5BD1E995 & mask
        k ^= k >> 24
        k = k * 0x5BD1E995 & mask
        h = h * 0x5BD1E995 & mask
        h ^= k
    rest = data[len(data) & ~3 :]
    if len(rest) == 3:
        h ^= rest[2] << 16
    if len(rest) >= 2:
        h ^= rest[1] << 8
    if len(rest) >= 1:
        h ^= rest[0]
        h = h * 0x5BD1E995 & mask
    h ^= h >> 13
    h = h * 0x5BD1E995 & mask
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


@given(st.binary(max_size=300))
def test_keys_of_any_length_hash_as_the_java_source_says(data: bytes) -> None:
    assert murmur2(data) == reference(data)


@given(st.text(max_size=100), st.integers(1, 1000))
def test_a_str_and_its_utf8_bytes_share_a_partition_within_range(key: str, partitions: int) -> None:
    found = partition_of(key, partitions)

    assert found in range(partitions)
    assert partition_of(key.encode(), partitions) == found


def test_a_key_too_long_to_be_remembered_goes_to_its_partition_too() -> None:
    key = "k" * 1000

    assert partition_of(key, 12) == (reference(key.encode()) & 0x7FFFFFFF) % 12
