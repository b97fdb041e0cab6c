"""Forms for SNS: the same bytes as urllib's."""

from urllib.parse import urlencode

import pytest

from messaging_sqs.clients import make_clients
from messaging_sqs.forms import form
from messaging_sqs.settings import SQSSettings

CLOSED = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain-text_1.~",
        '{"number":1,"text":"a+b c%20d&e=f"}',
        "%2B + %",
        "größe\t\r\n",
        "".join(map(chr, range(256))),
        "日本語のメッセージ" * 9,
    ],
)
def test_they_are_written_as_urllib_writes_them(text):
    fields = {"Action": "PublishBatch", "Entries.member.1.Message": text, "Number": 5}

    assert form(fields) == urlencode(fields).encode()


def test_a_batch_for_sns_is_one():
    clients = make_clients(SQSSettings(region="us-east-1", endpoint_url=CLOSED))
    sent = []

    class Seen(Exception):
        pass

    def see(request, **_):
        sent.append((request.body, request.headers["Content-Length"], request.headers["Content-Type"]))
        raise Seen

    sns = clients.sends["sns"]
    sns.meta.events.register("before-send.sns.PublishBatch", see)
    with pytest.raises(Seen):
        sns.publish_batch(
            TopicArn="arn:aws:sns:us-east-1:1:orders",
            PublishBatchRequestEntries=[{"Id": "0", "Message": "größe + 1"}],
        )

    ((body, length, kind),) = sent
    assert b"PublishBatchRequestEntries.member.1.Message=gr%C3%B6%C3%9Fe+%2B+1" in body
    assert (int(length), kind) == (len(body), b"application/x-www-form-urlencoded; charset=utf-8")
