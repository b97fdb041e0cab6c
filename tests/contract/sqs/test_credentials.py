"""Credentials that are renewed: a renewal that fails once is a transient fault, and no reason to end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import CredentialRetrievalError

from messaging.errors import AuthenticationFailed, ConnectionFailed
from tests.contract.bench import ack, healthy, publish, receive
from tests.contract.sqs.support import Bench, Refusal


class Role:
    """A source of credentials that end at once, and so are renewed at each call."""

    def __init__(self) -> None:
        self.away = False

    def renew(self) -> dict[str, str]:
        if self.away:
            raise CredentialRetrievalError(provider="container-role", error_msg="503: try again")
        end = datetime.now(UTC) + timedelta(minutes=5)
        return {
            "access_key": "test",
            "secret_key": "test",
            "token": "token",
            "expiry_time": end.isoformat(),
        }

    def session(self) -> boto3.Session:
        inner: Any = botocore.session.Session()
        inner._credentials = RefreshableCredentials.create_from_metadata(
            {**Role().renew(), "expiry_time": datetime.now(UTC).isoformat()}, self.renew, "container-role"
        )
        return boto3.Session(botocore_session=inner, region_name="us-east-1")


async def test_a_renewal_that_fails_once_interrupts_and_ends_nothing(bench: Bench):
    role = Role()
    adapter = await bench.adapter(session=role.session())
    group = await bench.group(adapter)
    consumer = bench.consumer(adapter, group)
    await publish(adapter, group.topic, "one")
    await ack(consumer, await receive(consumer, 1))

    role.away = True
    with pytest.raises(ConnectionFailed, match="try again") as interrupted:
        await receive(consumer, 1)
    assert not isinstance(interrupted.value, AuthenticationFailed)
    assert not (await adapter.health()).connected

    role.away = False
    await publish(adapter, group.topic, "two")
    assert len(await receive(consumer, 1)) == 1
    await healthy(adapter)


async def test_credentials_that_cannot_be_had_at_open_are_wrong(bench: Bench):
    role = Role()
    role.away = True
    with pytest.raises(AuthenticationFailed, match="container-role"):
        await bench.adapter(session=role.session())


@pytest.mark.parametrize("renewing", [True, False])
async def test_an_expired_token_is_fatal_only_where_nothing_renews_it(bench: Bench, renewing):
    adapter = await (bench.adapter(session=Role().session()) if renewing else bench.adapter())
    group = await bench.group(adapter)
    Refusal(adapter.native.polls, "ReceiveMessage", 403, "ExpiredToken")
    with pytest.raises(ConnectionFailed, match="ExpiredToken") as error:
        await receive(bench.consumer(adapter, group), 1)
    assert isinstance(error.value, AuthenticationFailed) is not renewing
