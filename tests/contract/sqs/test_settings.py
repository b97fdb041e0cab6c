"""URL, options, credentials: read without I/O, refused with the reason, found at open."""

import re

import boto3
import pytest

from messaging.adapter import AdapterContext
from messaging.clock import SystemClock
from messaging.errors import AuthenticationFailed, ConfigurationError, ConnectionFailed, MessagingError
from messaging_sqs import SQSAdapter, SQSSettings
from messaging_sqs.clients import make_clients
from tests.contract.bench import healthy, publish, receive

CLOSED = "http://127.0.0.1:1"


def unopened(url: str, **options: object) -> SQSAdapter:
    return SQSAdapter.from_url(url, AdapterContext(clock=SystemClock(), options=options))


async def opening(adapter: SQSAdapter) -> str:
    """The error of an open, and that closing then is no error."""
    try:
        await adapter.open()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await adapter.close()
    return ""


def test_the_url_names_the_region_and_its_query_goes_before_the_options():
    settings = SQSSettings.from_url("sqs://eu-central-1?lease=7", {"lease": 9, "pollers": 3})
    assert (settings.region, settings.lease, settings.pollers) == ("eu-central-1", 7, 3)
    assert SQSSettings.from_url("sqs://").region is None


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("sqs://us-east-1?colour=blue", "colour"),
        ("sqs://us-east-1?lease=0", "lease"),
        ("sqs://us-east-1?lease=43201", "lease"),
        ("sqs://us-east-1?max_message_bytes=2000000", "max_message_bytes"),
        ("sqs://us-east-1?session=x", "session"),
        ("sqs://key:secret-word@us-east-1", "credentials"),
        ("sqs://us-east-1:99", "region"),
        ("sqs://us-east-1/queue", "region"),
        ("sqs://us_east", "region"),
        ("sqs://us-east-1?retention=59", "retention"),
        ("sqs://us-east-1?endpoint_url=127.0.0.1:4566", "endpoint_url"),
        ("sqs://us-east-1?endpoint_url=localhost:4566", "endpoint_url"),
        ("sqs://us-east-1?sns_endpoint_url=ftp://127.0.0.1", "sns_endpoint_url"),
        ("sqs://us-east-1?sqs_endpoint_url=http://[::1", "sqs_endpoint_url"),
        ("sqs://us-east-1?sts_endpoint_url=http://127.0.0.1:x", "sts_endpoint_url"),
        ("sqs://us-east-1?endpoint_url=http://127.0.0.1:4566%20", "endpoint_url"),
        ("sqs://us-east-1?endpoint_url=", "endpoint_url"),
    ],
)
def test_what_cannot_be_is_refused_and_named(url, named):
    with pytest.raises(ConfigurationError, match=named) as error:
        SQSSettings.from_url(url)
    assert "secret-word" not in f"{error.value!r}"


def test_an_unknown_option_of_the_file_is_refused():
    with pytest.raises(ConfigurationError, match="colour"):
        SQSSettings.from_url("sqs://us-east-1", {"colour": "blue"})


async def test_missing_credentials_are_found_at_open(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    told = await opening(unopened(f"sqs://us-east-1?endpoint_url={CLOSED}"))
    assert told.startswith(AuthenticationFailed.__name__)
    assert "AWS_ACCESS_KEY_ID" in told


async def test_a_missing_region_is_found_at_open(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert "no region" in await opening(unopened(f"sqs://?endpoint_url={CLOSED}"))


async def test_the_region_of_the_environment_counts_although_boto3_ignores_it(monkeypatch, sqs_url):
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    adapter = unopened(sqs_url.replace("sqs://us-east-1", "sqs://"))
    await adapter.open()
    try:
        assert adapter.native.region == "eu-west-3"
    finally:
        await adapter.close()


async def test_an_unknown_profile_is_told_at_open():
    assert "nobody" in await opening(unopened(f"sqs://us-east-1?endpoint_url={CLOSED}&profile=nobody"))


async def test_where_nothing_listens_is_named():
    told = await opening(unopened(f"sqs://us-east-1?endpoint_url={CLOSED}&connect_timeout=1"))
    assert told.startswith(ConnectionFailed.__name__)
    assert "127.0.0.1:1" in told


async def test_the_credentials_of_a_role_are_assumed(sqs_url, monkeypatch):
    asked: list[str] = []
    role = "arn:aws:iam::000000000000:role/messaging"
    session = boto3.Session()
    session.events.register(
        "before-call.sts.AssumeRole", lambda params, **_: asked.append(params["body"]["RoleArn"])
    )
    adapter = unopened(f"{sqs_url}&role={role}", session=session)
    await adapter.open()
    try:
        assert asked == [role]
    finally:
        await adapter.close()


async def test_a_client_of_ones_own_is_used(bench):
    client = boto3.client(
        "sqs", region_name="us-east-1", endpoint_url=bench.url.partition("endpoint_url=")[2].partition("&")[0]
    )
    adapter = await bench.adapter(sqs_client=client)
    assert adapter.native.sqs is adapter.native.polls is client
    group = await bench.group(adapter)
    await publish(adapter, group.topic, "one")
    assert len(await receive(bench.consumer(adapter, group), 1)) == 1


async def test_clients_of_ones_own_tell_the_region_the_server_and_the_credentials(sqs_url, monkeypatch):
    endpoint = sqs_url.partition("endpoint_url=")[2].partition("&")[0]
    sqs, sns = (
        boto3.Session("own", "secret", region_name="eu-west-3").client(service, endpoint_url=endpoint)
        for service in ("sqs", "sns")
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    adapter = unopened("sqs://", sqs_client=sqs, sns_client=sns)
    await adapter.open()
    try:
        assert adapter.native.sts.meta.endpoint_url == endpoint
        assert adapter.native.region == "eu-west-3"
        assert endpoint in repr(adapter)
        assert adapter.capabilities.durability == "unknown"
    finally:
        await adapter.close()


async def test_a_client_for_another_region_than_the_url_is_refused(sqs_url):
    client = boto3.client("sqs", region_name="eu-west-3")
    told = await opening(unopened(sqs_url, sqs_client=client))
    assert told.startswith(ConfigurationError.__name__)
    assert "eu-west-3" in told


async def test_a_server_that_the_environment_names_is_not_taken_for_aws(bench, monkeypatch):
    endpoint = bench.url.partition("endpoint_url=")[2].partition("&")[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    adapter = await bench.adapter(url="sqs://us-east-1")
    assert adapter.capabilities.durability == "unknown"
    group = await bench.group(adapter)
    adapter.native.sqs.meta.events.register("before-send.sqs.GetQueueUrl", lambda **_: 1 / 0)
    with pytest.raises(MessagingError, match=re.escape(f"at {endpoint}")):
        await adapter._connection.queue_url(group.name)


@pytest.mark.parametrize(
    ("endpoint", "is_aws"),
    [
        (None, True),
        ("https://vpce-1-2.sqs.us-east-1.vpce.amazonaws.com", True),
        ("https://sqs.us-east-1.api.aws", True),
        ("https://amazonaws.com.example.org", False),
        (CLOSED, False),
    ],
)
def test_aws_is_known_by_its_names(endpoint, is_aws):
    assert make_clients(SQSSettings(region="us-east-1", endpoint_url=endpoint)).is_aws is is_aws


def test_requests_say_who_sends_them_as_boto3_does(monkeypatch):
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "billing")

    clients = make_clients(SQSSettings(region="us-east-1", endpoint_url=CLOSED))

    agents = [client.meta.config.user_agent for client in (clients.sqs, clients.sns, clients.sends["sns"])]
    assert all("Boto3/" in agent and "app/billing" in agent for agent in agents)


async def test_a_session_of_ones_own_is_used(bench, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    session = boto3.Session("own", "secret", region_name="us-east-1")
    adapter = await bench.adapter(session=session)
    assert adapter.native.sqs.meta.region_name == "us-east-1"
    await healthy(adapter)


async def test_what_is_created_is_encrypted_with_the_key_that_was_named(bench):
    adapter = await bench.adapter(kms_key="alias/messaging")
    group = await bench.group(adapter)
    url = await adapter._topology.queue_url(group)
    kept = adapter.native.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert kept["KmsMasterKeyId"] == "alias/messaging"
    arn = adapter._topology.state(group.topic).arn
    assert (
        adapter.native.sns.get_topic_attributes(TopicArn=arn)["Attributes"]["KmsMasterKeyId"]
        == "alias/messaging"
    )


async def test_no_error_and_no_representation_shows_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-word")
    adapter = unopened(f"sqs://us-east-1?endpoint_url={CLOSED}&connect_timeout=1")
    assert "secret-word" not in await opening(adapter) + repr(adapter) + repr(adapter._settings)
