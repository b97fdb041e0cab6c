import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from messaging import codec as codec_module
from messaging.codec import Codec, parse_content_type, register
from messaging.errors import ConfigurationError, DecodeError, InvalidMessage


class Price(BaseModel):
    amount: int


@dataclass
class Line:
    sku: str
    quantity: int = 1


def test_an_unknown_content_type_of_a_typed_topic_is_named() -> None:
    for content_type in ("application/xml", "application/octet-stream", "", ";;;"):
        with pytest.raises(DecodeError, match="no codec for content type"):
            Codec(Price).decode(b'{"amount": 1}', content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/vnd.shop+json",
        "text/json;charset=ascii",
    ],
)
def test_every_kind_of_json_is_json(content_type: str) -> None:
    assert Codec(Price).decode(b'{"amount": 1}', content_type) == Price(amount=1)
    assert Codec(Any).decode(b'{"amount": 1}', content_type) == {"amount": 1}


def test_the_charset_counts() -> None:
    assert Codec(str).decode('"é"'.encode("latin-1"), "application/json; charset=iso-8859-1") == "é"
    assert Codec(Any).decode('"é"'.encode("utf-16"), 'application/json; charset="utf-16"') == "é"
    assert Codec(str).decode("é".encode("latin-1"), "text/plain; charset=latin-1") == "é"
    for wrong in ("nonsense", "rot13", "hex"):
        with pytest.raises(DecodeError):
            Codec(str).decode(b'"e"', f"application/json; charset={wrong}")


@given(st.text(st.characters()))
def test_no_content_type_can_raise_while_it_is_read(content_type: str) -> None:
    essence, charset = parse_content_type(content_type)

    assert isinstance(essence, str)
    assert charset
    assert Codec(bytes).decode(b"x", content_type) == b"x"


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        (b"\xff", b"\xff", "application/octet-stream"),
        (bytearray(b"x"), b"x", "application/octet-stream"),
        ("é", "é".encode(), "text/plain; charset=utf-8"),
        ({"a": 1}, b'{"a":1}', "application/json"),
        (None, b"null", "application/json"),
        (Price(amount=1), b'{"amount":1}', "application/json"),
    ],
)
def test_an_untyped_topic_tells_formats_by_the_payload(
    payload: object, body: bytes, content_type: str
) -> None:
    assert Codec(Any).encode(payload) == (body, content_type)


def test_an_untyped_topic_reads_what_the_content_type_says_and_never_guesses() -> None:
    codec = Codec(Any)

    assert codec.decode(b'{"a":1}', None) == b'{"a":1}'
    assert codec.decode(b'{"a":1}', "application/octet-stream") == b'{"a":1}'
    assert codec.decode(b'{"a":1}', "application/x-unheard-of") == b'{"a":1}'
    assert codec.decode(b'{"a":1}', "text/plain") == '{"a":1}'
    assert codec.decode(b'{"a":1}', "application/json") == {"a": 1}
    with pytest.raises(DecodeError, match="the body is no text/plain"):
        codec.decode(b"\xff", "text/plain")


def test_an_untyped_payload_that_has_no_json_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="a payload of type object is not application/json"):
        Codec(Any).encode(object())


def test_plain_text_and_octets_can_be_asked_for() -> None:
    assert Codec(str, content_type="text/plain; charset=latin-1").encode("é") == (
        b"\xe9",
        "text/plain; charset=latin-1",
    )
    assert Codec(str, content_type="text/plain").decode(b"5", None) == "5"
    assert Codec(Any, content_type="application/octet-stream").encode(b"x")[0] == b"x"
    octets = Codec(bytes | None, content_type="application/octet-stream")
    assert octets.decode(b"x", None) == b"x"
    with pytest.raises(InvalidMessage, match="type str"):
        Codec(Any, content_type="text/plain").encode(5)
    with pytest.raises(InvalidMessage, match="type bytes"):
        Codec(Any, content_type="application/octet-stream").encode("x")
    with pytest.raises(InvalidMessage, match="text/plain"):
        Codec(Any, content_type="text/plain; charset=ascii").encode("é")
    with pytest.raises(InvalidMessage, match="UnicodeEncodeError"):
        Codec(str, content_type="text/plain; charset=ascii").encode("é")


@pytest.mark.parametrize(
    "content_type", ["application/x-unheard-of", "application/json; charset=utf-16", "json"]
)
def test_a_content_type_that_cannot_be_written_is_refused_at_once(content_type: str) -> None:
    with pytest.raises(ConfigurationError):
        Codec(Price, content_type=content_type)


@pytest.fixture
def reversed_json(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(codec_module, "_formats", {})
    register(
        "application/x-reversed",
        lambda value: json.dumps(value).encode()[::-1],
        lambda body: json.loads(body[::-1]),
    )
    return "application/x-reversed"


def test_a_format_can_be_added(reversed_json: str) -> None:
    codec = Codec(Line, content_type=reversed_json)

    body, content_type = codec.encode(Line("a"))

    assert body == b'{"sku": "a", "quantity": 1}'[::-1]
    assert codec.decode(body, content_type) == Line("a")
    assert codec.decode(b'{"sku": "b"}', "application/json") == Line("b")
    assert Codec(Line).decode(body, content_type) == Line("a")
    assert Codec(Any).decode(body, content_type) == {"sku": "a", "quantity": 1}
    with pytest.raises(DecodeError):
        Codec(Any).decode(b"{", content_type)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x+json", "nonsense"])
def test_the_built_in_formats_stay(content_type: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be registered"):
        register(content_type, bytes, bytes)
