"""What is repeated by itself: nothing of which the service might make a second message."""

import time
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError
from botocore.httpsession import URLLib3Session

from messaging.adapter import Done, Hold, SettleError, TopicSpec
from messaging.errors import PublishUncertain
from messaging.message import Receipt, Reject, Release, Retry
from messaging_sqs.connection import Interrupted
from tests.contract.bench import ids, nothing, outgoing, publish, receive, settle
from tests.contract.sqs.support import Bench, intercept

_SNS = 'xmlns="http://sns.amazonaws.com/doc/2010-03-31/"'
_THROTTLED_ENTRY = f"""<PublishBatchResponse {_SNS}><PublishBatchResult><Successful/><Failed><member><Id>0</Id>
<Code>Throttling</Code><Message>no</Message><SenderFault>false</SenderFault></member></Failed></PublishBatchResult>
</PublishBatchResponse>"""


def refusal(code: str) -> str:
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error>"
    return f"<ErrorResponse {_SNS}>{error}</ErrorResponse>"


class _Body:
    def __init__(self, text: str) -> None:
        self.text = text

    def stream(self) -> Any:
        yield self.text.encode()


class Line:
    """A session whose first publish goes wrong: the answer is `lost`, or the request is `throttled`.

    Where it is `lost for good`, no later one reaches the service. `then` answers all later ones in its place.
    """

    def __init__(self, fault: str, then: tuple[int, str] | None = None) -> None:
        self.fault = fault
        self.then = then
        self.sent = 0
        self.session = boto3.Session(region_name="us-east-1")
        for operation in ("sns.PublishBatch", "sqs.SendMessageBatch"):
            self.session.events.register(f"before-send.{operation}", self._spoil)

    def _spoil(self, request: Any, **_: object) -> AWSResponse | None:
        self.sent += 1
        if self.sent > 1 and self.fault == "lost for good":
            raise EndpointConnectionError(endpoint_url=request.url)
        if self.sent > 1 and self.then is not None:
            status, text = self.then
            return AWSResponse(request.url, status, {}, _Body(text))
        if self.sent > 1:
            return None
        if self.fault == "throttled":
            return AWSResponse(request.url, 400, {}, _Body(refusal("Throttling")))
        URLLib3Session().send(request)
        raise ConnectionClosedError(endpoint_url=request.url)


@pytest.mark.parametrize("fanout", ["sns", "client"])
async def test_a_publish_whose_answer_is_lost_is_uncertain_and_stored_once(bench: Bench, fanout):
    line = Line("lost")
    adapter = await bench.adapter(session=line.session, fanout=fanout)
    group = await bench.group(adapter)
    (result,) = await adapter.publish([outgoing(group.topic, "one")])
    assert isinstance(result, PublishUncertain)
    consumer = bench.consumer(adapter, group)
    assert ids(await receive(consumer, 1)) == ["one"]
    await nothing(consumer)


async def test_a_publish_that_the_service_deduplicates_is_repeated_and_stored_once(bench: Bench):
    line = Line("lost")
    adapter = await bench.adapter(session=line.session)
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    (result,) = await adapter.publish([outgoing(group.topic, "one", key="a")])
    assert isinstance(result, Receipt)
    assert line.sent == 2
    consumer = bench.consumer(adapter, group)
    assert ids(await receive(consumer, 1)) == ["one"]
    await nothing(consumer)


@pytest.mark.parametrize("fanout", ["sns", "client"])
async def test_what_a_repeated_publish_may_have_stored_is_uncertain_though_the_last_attempt_reached_nobody(
    bench: Bench, fanout
):
    line = Line("lost for good")
    adapter = await bench.adapter(session=line.session, fanout=fanout)
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    (result,) = await adapter.publish([outgoing(group.topic, "one", key="a")])
    assert isinstance(result, PublishUncertain)
    consumer = bench.consumer(adapter, group)
    assert ids(await receive(consumer, 1)) == ["one"]


@pytest.mark.parametrize(
    "then",
    [
        pytest.param((200, _THROTTLED_ENTRY), id="entry throttled"),
        *(
            pytest.param((status, refusal(code)), id=code)
            for status, code in [
                (400, "Throttling"),
                (400, "ExpiredTokenException"),
                (403, "AuthorizationError"),
                (403, "SignatureDoesNotMatch"),
                (404, "NotFound"),
                (400, "InvalidState"),
            ]
        ),
    ],
)
async def test_what_a_repeated_publish_may_have_stored_is_uncertain_though_the_last_attempt_is_refused(
    bench: Bench, then
):
    line = Line("lost", then)
    adapter = await bench.adapter(session=line.session)
    group = await bench.group(adapter, TopicSpec("orders", ordered=True, partitions=2))
    (result,) = await adapter.publish([outgoing(group.topic, "one", key="a")])
    assert isinstance(result, PublishUncertain)
    consumer = bench.consumer(adapter, group)
    assert ids(await receive(consumer, 1)) == ["one"]


async def test_a_throttled_publish_is_repeated_for_nothing_was_taken(bench: Bench):
    line = Line("throttled")
    adapter = await bench.adapter(session=line.session)
    group = await bench.group(adapter)
    (result,) = await adapter.publish([outgoing(group.topic, "one")])
    assert isinstance(result, Receipt)
    assert line.sent == 2


async def answers_are_lost(go_on, parameters) -> None:
    await go_on(**parameters)
    raise Interrupted("the answer came too late")


async def test_a_retry_of_which_a_copy_may_be_stored_is_held_and_no_further_copy_is_made(
    bench: Bench, monkeypatch
):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 1)
    with monkeypatch.context() as patched:
        intercept(adapter, patched, "send_message_batch", answers_are_lost)
        (refused,) = await settle(consumer, deliveries, Retry(), failure="{}")
        assert isinstance(refused, SettleError)
        for _ in range(3):
            (held,) = await settle(consumer, deliveries, Retry(), after=2.0, failure="{}")
            assert isinstance(held, Hold)
            assert held.until == pytest.approx(time.monotonic() + 2, abs=1)
    (copy,) = await receive(consumer, 1)
    assert (copy.message.id, copy.attempt) == ("one", 2)
    await nothing(consumer)


async def test_a_release_of_which_a_copy_may_be_stored_is_hidden_and_no_further_copy_is_made(
    bench: Bench, monkeypatch
):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = bench.consumer(adapter, group)
    for _ in range(2):
        assert await settle(consumer, await receive(consumer, 1), Release()) == [Done()]
    deliveries = await receive(consumer, 1)
    with monkeypatch.context() as patched:
        intercept(adapter, patched, "send_message_batch", answers_are_lost)
        (refused,) = await settle(consumer, deliveries, Release())
        assert isinstance(refused, SettleError)
        assert await settle(consumer, deliveries, Release()) == [Done()]
    assert ids(await receive(consumer, 2)) == ["one", "one"]
    await nothing(consumer)


async def test_a_dead_letter_that_may_be_stored_is_stored_again_and_shown_once(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    consumer = bench.consumer(adapter, group)
    deliveries = await receive(consumer, 1)
    with monkeypatch.context() as patched:
        intercept(adapter, patched, "send_message_batch", answers_are_lost)
        (refused,) = await settle(consumer, deliveries, Reject("bad"), failure="{}")
        assert isinstance(refused, SettleError)
    assert await settle(consumer, deliveries, Reject("bad"), failure="{}") == [Done()]
    async with adapter.dead_letters(group).scan() as letters:
        assert [letter.message.id async for letter in letters] == ["one"]
