import ssl

import pytest

from messaging import ConfigurationError
from messaging.tls import client_context


def test_certificate_and_host_name_are_verified_unless_it_is_said_otherwise() -> None:
    context = client_context("the broker")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_leaving_the_host_name_unchecked_leaves_the_authority_verified() -> None:
    context = client_context("the broker", check_hostname=False)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the broker: the option key .* cert"):
        client_context("the broker", key="client.key")
