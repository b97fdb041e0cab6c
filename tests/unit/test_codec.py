from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    RootModel,
    Tag,
    field_serializer,
    model_validator,
)
from typing_extensions import TypeAliasType, TypedDict

from messaging.codec import Codec
from messaging.errors import ConfigurationError, DecodeError, InvalidMessage


class Placed(BaseModel):
    kind: Literal["placed"] = "placed"
    customer: str


class Cancelled(BaseModel):
    kind: Literal["cancelled"] = "cancelled"
    customer: str


class Price(BaseModel):
    amount: int


class Cost(BaseModel):
    amount: int


@dataclass
class Line:
    sku: str
    quantity: int = 1


class Address(TypedDict):
    city: str


class Point(NamedTuple):
    x: int
    y: int


class Color(Enum):
    RED = "red"


Either = TypeAliasType("Either", Placed | Cancelled)
Tree = TypeAliasType("Tree", "dict[str, Tree] | int")


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (Placed, Placed(customer="c")),
        (Placed | Cancelled, Cancelled(customer="c")),
        (Either, Cancelled(customer="c")),
        (Annotated[Placed | Cancelled, Field(discriminator="kind")], Cancelled(customer="c")),
        (Price | None, None),
        (Price | None, Price(amount=1)),
        (Line | None, Line("a")),
        (Line, Line("a", 2)),
        (Address, {"city": "Bern"}),
        (Point, Point(1, 2)),
        (Color, Color.RED),
        (int | str, "5"),
        (int | str, 5),
        (float, 1.5),
        (str, "héllo"),
        (bool, True),
        (None, None),
        (UUID, UUID(int=7)),
        (datetime, datetime(2026, 1, 2)),
        (list[Placed | Cancelled], [Placed(customer="a"), Cancelled(customer="b")]),
        (dict[str, Line], {"a": Line("a")}),
        (tuple[int, Price], (1, Price(amount=2))),
        (set[int], {1, 2}),
        (RootModel[list[int]], RootModel[list[int]]([1])),
        (JsonValue, {"a": [1, None, "b"]}),
        (bytes, b"\x00\xff"),
    ],
)
def test_a_payload_survives_the_wire(type_: Any, payload: object) -> None:
    codec = Codec(type_)

    body, content_type = codec.encode(payload)

    assert type(body) is bytes
    assert codec.decode(body, content_type) == payload
    assert codec.decode(body, None) == payload
    assert (
        content_type
        == codec.content_type
        == ("application/octet-stream" if type_ is bytes else "application/json")
    )


@given(st.binary())
def test_bytes_travel_untouched_whatever_the_content_type_says(body: bytes) -> None:
    codec = Codec(bytes, content_type="image/png")

    assert codec.encode(body) == (body, "image/png")
    assert codec.decode(body, "application/json; charset=utf-16") == body


@pytest.mark.parametrize(
    ("type_", "payload", "expected", "actual"),
    [
        (Placed, {"customer": "c"}, "Placed", "dict"),
        (Placed, Price(amount=1), "Placed", "Price"),
        (Price, Cost(amount=1), "Price", "Cost"),
        (Placed, None, "Placed", "NoneType"),
        (Placed | Cancelled, {"kind": "placed", "customer": "c"}, "Placed | Cancelled", "dict"),
        (Placed | Cancelled, Price(amount=1), "Placed | Cancelled", "Price"),
        (
            Annotated[Placed | Cancelled, Discriminator("kind")],
            {"kind": "placed"},
            "Placed | Cancelled",
            "dict",
        ),
        (Price | None, {"amount": 1}, "Price | None", "dict"),
        (Line, {"sku": "a"}, "Line", "dict"),
        (Address, {"town": "Bern"}, "Address", "dict"),
        (Address, {}, "Address", "dict"),
        (int, "5", "int", "str"),
        (int | str, b"5", "int | str", "bytes"),
        (datetime, "2026-01-02", "datetime", "str"),
        (list[Price], [{"amount": 1}], "list[Price]", "list"),
        (bytes, "text", "bytes", "str"),
    ],
)
def test_a_payload_of_another_type_is_refused_before_anything_is_sent(
    type_: Any, payload: object, expected: str, actual: str
) -> None:
    with pytest.raises(InvalidMessage) as raised:
        Codec(type_).encode(payload)

    assert f"expected a payload of type {expected}, got {actual}" in str(raised.value)


def test_a_field_of_another_type_is_refused_without_showing_its_value() -> None:
    with pytest.raises(InvalidMessage, match="(quantity|it) is no int but str") as raised:
        Codec(Line).encode(Line("a", "secret"))  # pyright: ignore[reportArgumentType]

    assert "secret" not in str(raised.value)


class Reading(BaseModel):
    value: float
    note: str | None = None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_have_is_refused_alone_and_among_others(value: float) -> None:
    codec = Codec(Reading)
    with pytest.raises(
        InvalidMessage, match="Reading cannot be read again.*NaN.*value: Input should be a valid number"
    ):
        codec.encode(Reading(value=value))
    with pytest.raises(InvalidMessage, match="Reading cannot be read again"):
        codec.encode_all([Reading(value=1.0), Reading(value=value)])
    with pytest.raises(InvalidMessage, match="float cannot be read again"):
        Codec(float).encode(value)

    assert codec.encode_all([Reading(value=1.0)]) == [(b'{"value":1.0,"note":null}', "application/json")]


class Measured(BaseModel):
    value: float | None
    others: list[float | None] = []
    note: str | None = None


@dataclass(frozen=True)
class Sample:
    value: Annotated[float, Field(le=10)] | str | None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("type_", "make"),
    [
        (Measured, lambda value: Measured(value=value)),
        (Measured, lambda value: Measured(value=1.0, others=[None, value])),
        (Sample, Sample),
        (float | None, lambda value: value),
    ],
)
def test_a_number_that_would_be_read_as_none_is_refused(
    type_: Any, make: Callable[[float], Any], value: float
) -> None:
    codec = Codec[Any](type_)
    with pytest.raises(InvalidMessage, match="has NaN or infinity where None may be"):
        codec.encode(make(value))
    with pytest.raises(InvalidMessage, match="has NaN or infinity where None may be"):
        codec.encode_all([make(1.0), make(value)])


def test_none_travels_beside_numbers() -> None:
    codec = Codec(Measured)
    for sent in (
        Measured(value=None),
        Measured(value=1.5, others=[None, 2.5]),
        Measured(value=2, note="null"),
    ):
        assert codec.decode(*codec.encode(sent)) == sent


def test_none_travels_in_what_is_not_equal_to_itself() -> None:
    class Odd(Measured):
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = None

    assert Codec(Odd).encode(Odd(value=None))[0] == b'{"value":null,"others":[],"note":null}'


class Level(Enum):
    LOW = 1


class Tint(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("type_", "wrong", "right"),
    [
        (dict[int | None, int], {None: 1}, {2: 1}),
        (dict[tuple[int, int], int], {(1, 2): 3}, {}),
        (dict[Level, int], {Level.LOW: 1}, {}),
        (dict[Tint, int], None, {Tint.RED: 1}),
        (Literal[Level.LOW], Level.LOW, None),
    ],
)
def test_a_key_or_a_member_that_cannot_be_read_again_is_refused(type_: Any, wrong: Any, right: Any) -> None:
    codec = Codec[Any](type_)
    if wrong is not None:
        with pytest.raises(InvalidMessage, match="cannot be read again as JSON"):
            codec.encode(wrong)
    if right is not None:
        assert codec.decode(*codec.encode(right)) == right


def test_a_number_that_json_does_not_have_travels_where_its_model_writes_it() -> None:
    class Precise(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")
        value: float
        note: str | None = None

    codec = Codec(Precise)

    assert codec.decode(*codec.encode(Precise(value=float("inf")))) == Precise(value=float("inf"))


@pytest.mark.parametrize(
    "said",
    [
        "Expected `int` but got `str` with value `'secret'` - serialized value may not be as expected",
        "Expected `int` - serialized value may not be as expected [input_value='secret', input_type=str]",
    ],
)
def test_no_pydantic_that_is_supported_makes_us_show_a_value(said: str) -> None:
    """As 2.10 and 2.11 say it."""

    class Refused(BaseModel):
        value: int

        @field_serializer("value")
        def refuse(self, value: int) -> int:
            raise ValueError(f"Pydantic serializer warnings:\n  {said}")

    with pytest.raises(InvalidMessage, match="it is no int but str") as raised:
        Codec(Refused).encode(Refused(value=1))

    assert "secret" not in str(raised.value)


def test_what_a_serializer_raises_is_an_invalid_message() -> None:
    class Odd(BaseModel):
        value: int

        @field_serializer("value")
        def refuse(self, value: int) -> int:
            raise KeyError("boom")

    with pytest.raises(InvalidMessage, match="boom"):
        Codec(Odd).encode(Odd(value=1))


@pytest.mark.parametrize(
    "type_",
    [
        Price | Cost,
        Price | Line,
        Price | Address,
        Placed | Price,
        Price | dict[str, int],
        list[Price | Cost],
        dict[str, Price | Cost],
        tuple[Price | Cost, int],
        Price | Cost | None,
        Annotated[Price | Cost, BeforeValidator(lambda value: value)],
    ],
)
def test_a_union_whose_members_cannot_be_told_apart_is_refused(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be told apart.*Literal"):
        Codec(type_)


def test_members_are_looked_at_through_what_wraps_them() -> None:
    class Root(RootModel[Price]):
        pass

    class Checked(BaseModel):
        @model_validator(mode="before")
        @classmethod
        def anything(cls, value: Any) -> Any:
            return value

    class Tree(BaseModel):
        children: "list[Tree]" = []

    tagged: Any = Annotated[Placed | Cancelled, Field(discriminator="kind")]
    for refused in (Root | Cost, Checked | Cost, Tree | Cost, tagged | Price):
        with pytest.raises(ConfigurationError, match="cannot be told apart"):
            Codec(refused)
    for told_apart in (RootModel[int] | Cost, tagged | None, Price | list[Cost] | bool):
        Codec(told_apart)


def test_two_members_with_one_tag_cannot_be_told_apart() -> None:
    class Also(BaseModel):
        kind: Literal["placed"] = "placed"

    with pytest.raises(ConfigurationError, match=r"cannot be told apart \(Placed, Also\)"):
        Codec(Placed | Also)


def test_a_callable_discriminator_tells_members_apart() -> None:
    def tag(value: Any) -> str:
        return (
            "price"
            if isinstance(value, Price) or (isinstance(value, dict) and value.get("v") == 1)
            else "cost"
        )

    codec = Codec(
        Annotated[Annotated[Price, Tag("price")] | Annotated[Cost, Tag("cost")], Discriminator(tag)]
    )

    assert codec.decode(b'{"v": 1, "amount": 1}', None) == Price(amount=1)
    assert codec.decode(b'{"amount": 1}', None) == Cost(amount=1)


def test_tags_of_dataclasses_and_typed_dicts_tell_members_apart() -> None:
    @dataclass
    class A:
        tag: Literal["a"] = "a"

    class B(TypedDict):
        tag: Literal["b"]

    codec = Codec(A | B)

    assert codec.decode(b'{"tag": "b"}', None) == {"tag": "b"}
    assert codec.decode(*codec.encode(A())) == A()


def test_a_recursive_type_is_no_endless_search() -> None:
    class Node(BaseModel):
        next: "Node | None" = None

    assert Codec(Node).decode(b'{"next": {}}', None) == Node(next=Node())
    assert Codec(Tree).encode({"a": {"b": 1}})[0] == b'{"a":{"b":1}}'


class NoSchema:
    pass


@pytest.mark.parametrize("type_", [NoSchema, "Nowhere", list[NoSchema]])
def test_a_type_that_pydantic_cannot_carry_is_refused(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match="pydantic cannot carry"):
        Codec(type_)


def test_the_body_of_a_decode_error_stays_private() -> None:
    with pytest.raises(
        DecodeError, match="the body is no Price: amount: Input should be a valid integer"
    ) as raised:
        Codec(Price).decode(b'{"amount": "secret"}', None)

    assert "secret" not in str(raised.value)


def test_many_problems_of_a_body_are_counted() -> None:
    with pytest.raises(DecodeError, match="and 2 more"):
        Codec(list[int]).decode(b'["a", "b", "c", "d", "e"]', None)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nul", b'{"amount": 1', b"[" * 100_000])
def test_no_body_raises_anything_but_a_decode_error(body: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec(Price).decode(body, None)
    with pytest.raises(DecodeError):
        Codec(Any).decode(body, "application/json")
