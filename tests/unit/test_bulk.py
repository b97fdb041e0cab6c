"""What is written together is what each would be written as alone, and is refused as it would be."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_serializer, model_serializer

from messaging.bulk import AT_ONCE
from messaging.codec import Codec
from messaging.errors import InvalidMessage


class Plain(BaseModel):
    number: int
    text: str = "x"


class Configured(BaseModel):
    """Each of these settings changes how a field without a type is written."""

    model_config = ConfigDict(
        ser_json_timedelta="float",
        ser_json_bytes="base64",
        ser_json_inf_nan="strings",
        serialize_by_alias=True,
    )
    long: Any = timedelta(seconds=1.5)
    raw: Any = b"\xff\xfe"
    odd: Any = float("inf")
    typed: timedelta = timedelta(1)
    renamed: int = Field(default=3, alias="r")


class Tree(BaseModel):
    children: list[Tree] = []


class Own(BaseModel):
    secret: str

    @field_serializer("secret")
    def hidden(self, value: str) -> str:
        return "*" * len(value)

    @model_serializer(mode="wrap")
    def wrapped(self, write: Any) -> Any:
        return {"own": write(self)}


class Pairs(RootModel[list[tuple[str, None]]]):
    """Its JSON may hold what stands between two models."""


class Child(Plain):
    def label(self) -> str:
        return f"child {self.number}"


@pytest.mark.parametrize(
    ("model", "payloads"),
    [
        (Plain, [Plain(number=number, text='",null],[\\') for number in range(2 * AT_ONCE + 1)]),
        (Configured, [Configured(), Configured(long=b"\x80", raw=timedelta(2))]),
        (Tree, [Tree(), Tree(children=[Tree(), Tree(children=[Tree()])])]),
        (Own, [Own(secret="a"), Own(secret="bc")]),
        (Pairs, [Pairs([]), Pairs([("a", None), ("b", None)]), Pairs([("c", None)])]),
        (Plain, [Plain(number=1), Child(number=2), Plain(number=3)]),
        (Plain, [Plain(number=1)] * 3),
        (dict[str, int], [{"a": 1}, {"b": 2}]),
        (Any, [1, "two", b"three"]),
        (bytes, [b"a", b"b"]),
    ],
)
def test_what_is_written_together_is_written_as_each_alone(model: Any, payloads: list[Any]) -> None:
    codec: Codec[Any] = Codec(model)

    assert codec.encode_all(payloads) == [codec.encode(payload) for payload in payloads]


class Lazy(BaseModel):
    """Its numbers can be read once."""

    numbers: Iterable[int]
    marks: list[list[int | None]] = []


def test_what_can_be_read_once_is_written_once() -> None:
    payloads = [Lazy(numbers=[1, 2]), Lazy(numbers=[3], marks=[[1, None], [2]])]
    bodies = [body for body, _ in Codec(Lazy).encode_all(payloads)]

    assert bodies == [b'{"numbers":[1,2],"marks":[]}', b'{"numbers":[3],"marks":[[1,null],[2]]}']


def test_one_that_is_refused_among_many_is_named_as_alone() -> None:
    codec = Codec(Plain)
    good = [Plain(number=number) for number in range(AT_ONCE)]
    bad = Plain(number=1)
    bad.number = "private"  # type: ignore[assignment]

    with pytest.raises(InvalidMessage, match="is no int but str") as alone:
        codec.encode(bad)
    with pytest.raises(InvalidMessage) as among:
        codec.encode_all([*good, bad, *good])

    assert str(among.value) == str(alone.value)
    assert "private" not in str(among.value)


def test_a_payload_of_another_type_among_many_is_refused() -> None:
    payloads: list[Any] = [Plain(number=1), Own(secret="a")]

    with pytest.raises(InvalidMessage, match="expected a payload of type Plain, got Own"):
        Codec(Plain).encode_all(payloads)
