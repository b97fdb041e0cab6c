"""What the service, or a gateway before it, refuses and takes again later: it ends nothing."""

import pytest

from messaging.errors import ConfigurationError, ConnectionFailed, PublishError, PublishUncertain, is_fatal
from messaging.message import Receipt
from tests.contract.bench import outgoing, publish, receive
from tests.contract.sqs.support import Bench, Page, Refusal, intercept

SKEWED = (
    "Signature expired: 20261122T000000Z is now earlier than 20261122T001000Z (20261122T001500Z - 5 min.)"
)
PASSING = [
    (429, "429", "Too Many Requests"),
    (408, "408", "Request Timeout"),
    (400, "InvalidSignatureException", SKEWED),
    (403, "RequestExpired", "Request has expired"),
    (403, "403", "Forbidden"),
    (400, "KMS.DisabledException", "the key is disabled"),
    (400, "SomethingNew", "nobody knows it"),
]


@pytest.mark.parametrize(("status", "code", "text"), PASSING)
async def test_a_receive_goes_on_after_any_refusal_that_is_not_known_to_last(
    bench: Bench, status, code, text
):
    adapter = await bench.adapter(poll_wait=1)
    group = await bench.group(adapter)
    consumer, inbox = bench.consumer(adapter, group), await adapter.reply_inbox()
    refusal = Refusal(adapter.native.polls, "ReceiveMessage", status, code, text)
    for receiver in (consumer, inbox):
        with pytest.raises(Exception, match=text[:8]) as refused:
            await receiver.receive(1, 5.0)
        assert not is_fatal(refused.value)

    refusal.over = True
    await publish(adapter, group.topic, "one")
    assert len(await receive(consumer, 1)) == 1
    assert await adapter.reply([(inbox.address, outgoing(group.topic, "reply").message)]) == [None]
    assert [reply.id for reply in await inbox.receive(1, 5.0)] == ["reply"]
    await inbox.close()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidClientTokenId", "SignatureDoesNotMatch"])
async def test_credentials_and_permissions_are_known_to_last(bench: Bench, code):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    Refusal(adapter.native.polls, "ReceiveMessage", 403, code, "no")
    with pytest.raises(Exception, match="ReceiveMessage") as refused:
        await receive(bench.consumer(adapter, group), 1)
    assert is_fatal(refused.value)
    if code == "AccessDenied":
        assert isinstance(refused.value, ConfigurationError)


@pytest.mark.parametrize(
    ("status", "code", "text", "kind"), [(*PASSING[1], PublishUncertain), (*PASSING[-1], PublishError)]
)
async def test_a_publish_is_uncertain_only_where_the_service_may_have_the_message(
    bench: Bench, status, code, text, kind
):
    adapter = await bench.adapter(fanout="client")
    group = await bench.group(adapter)
    refusal = Refusal(adapter._connection.clients.sends["sqs"], "SendMessageBatch", status, code, text)
    (result,) = await adapter.publish([outgoing(group.topic, "one")])
    assert type(result) is kind
    refusal.over = True
    (result,) = await adapter.publish([outgoing(group.topic, "two")])
    assert isinstance(result, Receipt)


async def test_a_page_in_place_of_an_answer_is_a_failed_connection(bench: Bench, monkeypatch):
    adapter = await bench.adapter()
    group = await bench.group(adapter)

    async def page(*_: object) -> dict[str, object]:
        return {}  # what boto3 reads in one

    intercept(adapter, monkeypatch, "get_queue_url", page)
    with pytest.raises(ConnectionFailed, match="not SQS"):
        await adapter.generations(group.topic)


@pytest.mark.parametrize(
    "text", ["<html><body>Log in first</body></html>", '{"Messages": [{"MessageId": "1", "Bo', ""]
)
async def test_a_page_in_place_of_messages_is_no_empty_queue(bench: Bench, text: str):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    consumer, inbox = bench.consumer(adapter, group), await adapter.reply_inbox()
    page = Page(adapter.native.polls, "ReceiveMessage", text)
    for receiver in (consumer, inbox):
        with pytest.raises(ConnectionFailed, match="not an answer of SQS"):
            await receiver.receive(1, 5.0)

    page.over = True
    await publish(adapter, group.topic, "one")
    assert len(await receive(consumer, 1)) == 1
    await inbox.close()


async def test_a_page_in_place_of_no_answer_is_no_mark_of_a_suspect(bench: Bench):
    adapter = await bench.adapter()
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    (delivery,) = await receive(consumer := bench.consumer(adapter, group), 1)
    page = Page(adapter.native.sqs, "TagQueue", "<html><body>Log in first</body></html>")
    with pytest.raises(ConnectionFailed, match="not an answer of SQS"):
        await consumer.isolate(delivery)
    page.over = True
    assert await consumer.isolate(delivery)
