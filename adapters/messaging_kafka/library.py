"""What this adapter uses of aiokafka, all in one place: aiokafka carries no types, and some of this is its inner part.

Connections, requests and record batches are aiokafka's. Its producer, consumer and coordinator are not used: the first
gives up a partition after one batch that the broker refused, the second delays what lies in its buffer, the third stops
every partition at each rebalance, retries commits for ever and hangs in `stop` while the broker is down.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from aiokafka import abc, client, conn, errors
from aiokafka.coordinator import protocol as consumer_protocol
from aiokafka.protocol import (
    admin,
    api,
    commit,
    coordination,
    fetch,
    group,
    metadata,
    offset,
    transaction,
    types,
)
from aiokafka.record import default_records, memory_records

_logger = logging.getLogger("aiokafka")
if _logger.level == logging.NOTSET:
    # It logs an error at each attempt; what an operator acts on is told once, by us.
    _logger.setLevel(logging.CRITICAL)

Client: Any = client.AIOKafkaClient
connect: Any = conn.create_conn
"""One connection to one broker, authenticated; raises why it cannot be had."""
TokenProvider: Any = abc.AbstractTokenProvider

CreatePartitions: Any = admin.CreatePartitionsRequest
CreateTopics: Any = admin.CreateTopicsRequest
DeleteTopics: Any = admin.DeleteTopicsRequest
DescribeGroups: Any = admin.DescribeGroupsRequest
DeleteGroups: Any = admin.DeleteGroupsRequest
DeleteRecords: Any = admin.DeleteRecordsRequest
ApiVersions: Any = admin.ApiVersionRequest
OffsetCommit: Any = commit.OffsetCommitRequest
OffsetFetch: Any = commit.OffsetFetchRequest
FindCoordinator: Any = coordination.FindCoordinatorRequest
JoinGroup: Any = group.JoinGroupRequest
SyncGroup: Any = group.SyncGroupRequest
Heartbeat: Any = group.HeartbeatRequest
LeaveGroup: Any = group.LeaveGroupRequest
Metadata: Any = metadata.MetadataRequest
ListOffsets: Any = offset.OffsetRequest
Fetch: Any = fetch.FetchRequest
Api: Any = api
Types: Any = types
"""Of these, requests are made that aiokafka does not have."""
InitProducerId: Any = transaction.InitProducerIdRequest

MemberMetadata: Any = consumer_protocol.ConsumerProtocolMemberMetadata
MemberAssignment: Any = consumer_protocol.ConsumerProtocolMemberAssignment
BatchBuilder: Any = default_records.DefaultRecordBatchBuilder
Batches: Any = memory_records.MemoryRecords

Errors: Any = errors
KafkaError: type[Exception] = errors.KafkaError

DEFAULT_CHANNEL: Any = client.ConnectionGroup.DEFAULT
COMMIT_CHANNEL = "commit"
"""A connection of its own for commits: a join keeps the one that it is sent on waiting."""

_LENGTH_AT, _LENGTH_ENDS = 8, 12
"""Of the length of a batch, which counts what follows it."""

ABSENT = -1
"""The offset of a partition that a group has committed nothing for."""
LATEST = -1
EARLIEST = -2


class Place(NamedTuple):
    """A partition of a Kafka topic."""

    topic: str
    partition: int


def failure_of(code: int) -> Exception | None:
    """The error that a code of the protocol stands for; None for success."""
    if code == 0:
        return None
    error: Exception = errors.for_code(code)()
    return error


def lenient(answer: bytes, number: int) -> Any:
    """The batch of this number in an answer, which reads names of headers that are no UTF-8, too.

    The protocol says UTF-8, no broker checks it, and clients whose strings are bytes send what they are given.
    """
    start = 0
    for _ in range(number):
        start = _end(answer, start)
    return _LenientBatch(answer[start : _end(answer, start)])


def _end(answer: bytes, start: int) -> int:
    length = int.from_bytes(answer[start + _LENGTH_AT : start + _LENGTH_ENDS])
    return start + _LENGTH_ENDS + length


class _LenientBytes(bytearray):
    """Text is decoded whatever it is."""

    def __getitem__(self, at: Any) -> Any:
        plain: Any = super()
        return plain.__getitem__(at) if isinstance(at, int) else _LenientBytes(plain.__getitem__(at))

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


# No public class reads what the one in C does not.
_Batch: Any = default_records._DefaultRecordBatchPy  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class _LenientBatch(_Batch):  # type: ignore[misc]
    """aiokafka's own reader in Python, over such bytes."""

    _buffer: Any

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientBytes(self._buffer)
