"""What one entry of a batch is refused with, beside what a whole call is."""

import pytest
from botocore.exceptions import ClientError

from messaging.errors import ConnectionFailed
from messaging_sqs.batches import Refused, in_batches
from messaging_sqs.connection import Connection, Throttled
from messaging_sqs.settings import SQSSettings

THROTTLED = [
    "OverLimit",
    "AWS.SimpleQueueService.OverLimit",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ThrottlingException",
    "TooManyRequestsException",
    "KMS.ThrottlingException",
    "KmsThrottled",
    "kms.throttled",
]
LASTING = ["ReceiptHandleIsInvalid", "InvalidMessageContents", "AWS.SimpleQueueService.MessageTooLong"]


@pytest.fixture
def connection():
    return Connection(SQSSettings(region="us-east-1"))


async def refused(connection, monkeypatch, code):
    async def answer(*_, Entries, **parameters):
        return {"Failed": [{"Id": one["Id"], "Code": code, "Message": "no"} for one in Entries]}

    monkeypatch.setattr(connection, "call", answer)
    (result,) = await in_batches(connection, "sqs", "delete_message_batch", [{}])
    return result


@pytest.mark.parametrize("code", THROTTLED)
async def test_an_entry_and_a_whole_call_are_throttled_by_the_same_codes(connection, monkeypatch, code):
    entry = await refused(connection, monkeypatch, code)
    call = connection.translated(
        ClientError({"Error": {"Code": code, "Message": "no"}}, "DeleteMessageBatch"), "DeleteMessageBatch"
    )

    assert type(entry) is type(call) is Throttled
    assert code in str(entry) and code in str(call)


@pytest.mark.parametrize("code", LASTING)
async def test_an_entry_that_is_refused_for_good_is_not_taken_for_throttled(connection, monkeypatch, code):
    error = await refused(connection, monkeypatch, code)

    assert isinstance(error, Refused) and not isinstance(error, ConnectionFailed)
