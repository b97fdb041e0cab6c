"""LocalStack and ElasticMQ. One start of each is shared: it takes seconds."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import pytest

from messaging_contracts import brokers
from messaging_contracts.brokers import web
from messaging_contracts.brokers.elasticmq import KEPT
from messaging_contracts.brokers.process import NativeBroker
from messaging_contracts.brokers.sqs import CREDENTIALS
from tests.brokers.processes import LOOPBACK, left_behind, listening_addresses

pytestmark = pytest.mark.sqs


def own(name: str, config: Mapping[str, str] | None = None) -> Iterator[NativeBroker]:
    broker = brokers.start(name, native=True, config=config or {})
    assert isinstance(broker, NativeBroker)
    yield broker
    broker.stop()
    assert not left_behind(broker.home)
    assert not broker.home.exists()


@pytest.fixture(scope="module")
def localstack() -> Iterator[NativeBroker]:
    yield from own("sqs")


@pytest.fixture(scope="module")
def elasticmq() -> Iterator[NativeBroker]:
    yield from own("elasticmq", KEPT)


@pytest.fixture(params=["localstack", "elasticmq"])
def broker(request: pytest.FixtureRequest) -> NativeBroker:
    return request.getfixturevalue(request.param)


def client(service: Any, broker: NativeBroker) -> Any:
    return boto3.client(
        service,
        endpoint_url=web.endpoint(broker.url),
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def bodies(sqs: Any, queue: str) -> list[str]:
    answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=2)
    return [message["Body"] for message in answer.get("Messages", [])]


def test_messages_pass_through_a_queue(broker: NativeBroker) -> None:
    sqs = client("sqs", broker)
    queue = sqs.create_queue(QueueName="passing")["QueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody="hello")
    assert bodies(sqs, queue) == ["hello"]
    assert queue.startswith(web.endpoint(broker.url))


def test_it_listens_on_loopback_alone(broker: NativeBroker) -> None:
    assert listening_addresses(broker) <= set(LOOPBACK)


def test_a_paused_broker_accepts_and_does_not_answer(broker: NativeBroker) -> None:
    broker.pause()
    with pytest.raises(TimeoutError):
        web.get(broker.url, "/", timeout=0.3)
    broker.resume()
    assert client("sqs", broker).list_queues()["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_a_topic_of_localstack_delivers_to_its_queues(localstack: NativeBroker) -> None:
    assert localstack.version == "4.14.0"
    sqs, sns = client("sqs", localstack), client("sns", localstack)
    queue = sqs.create_queue(QueueName="subscribed")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    topic = sns.create_topic(Name="topic")["TopicArn"]
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=attributes["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    sns.publish(TopicArn=topic, Message="hello")
    assert bodies(sqs, queue) == ["hello"]


def test_elasticmq_keeps_messages_over_kill_and_restart(elasticmq: NativeBroker) -> None:
    sqs = client("sqs", elasticmq)
    queue = sqs.create_queue(QueueName="kept.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody="kept", MessageGroupId="a", MessageDeduplicationId="1")
    elasticmq.kill()
    elasticmq.restart()
    assert bodies(sqs, queue) == ["kept"]


def test_elasticmq_has_the_limits_of_aws(elasticmq: NativeBroker) -> None:
    sqs = client("sqs", elasticmq)
    queue = sqs.create_queue(QueueName="strict")["QueueUrl"]
    with pytest.raises(sqs.exceptions.ClientError):
        sqs.send_message(QueueUrl=queue, MessageBody="late", DelaySeconds=901)


@pytest.mark.slow
def test_localstack_comes_back_empty(localstack: NativeBroker) -> None:
    sqs = client("sqs", localstack)
    queue = sqs.create_queue(QueueName="gone")["QueueUrl"]
    localstack.kill()
    localstack.restart()
    with pytest.raises(sqs.exceptions.QueueDoesNotExist):
        bodies(sqs, queue)


def test_run_hands_credentials_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    run = [sys.executable, "-m", "messaging_contracts", "run", "elasticmq", "--", sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
    environment = json.loads(done.stdout)
    assert CREDENTIALS.items() <= environment.items()
    assert environment["MESSAGING_TEST_ELASTICMQ_URL"].startswith(
        "sqs://elasticmq?endpoint_url=http://127.0.0.1:"
    )
