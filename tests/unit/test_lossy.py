"""What would be read otherwise than it was published, or by nobody, is refused before it is sent."""

from dataclasses import InitVar, dataclass, field
from typing import Any, Generic, TypeVar

import pydantic.dataclasses
import pytest
from pydantic import BaseModel, ConfigDict, SerializeAsAny, model_serializer

from messaging.codec import Codec
from messaging.errors import ConfigurationError, InvalidMessage

T = TypeVar("T")


class Loose(BaseModel):
    value: Any = None
    more: dict[str, Any] = {}


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Named(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")

    value: Any = None


@dataclass
class Plain:
    value: Any
    listed: list[Any] = field(default_factory=list[Any])


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (Loose, Loose(value=NAN)),
        (Loose, Loose(more={"a": [None, INFINITY]})),
        (Open, Open.model_validate({"a": NAN})),
        (Plain, Plain(-INFINITY)),
        (Plain, Plain(None, [NAN])),
        (dict, {"a": NAN}),
        (dict[str, Any], {"a": NAN}),
        (list, [INFINITY]),
    ],
)
def test_a_number_without_a_type_that_would_be_read_as_none_is_refused(type_: Any, payload: Any) -> None:
    codec = Codec[Any](type_)
    with pytest.raises(InvalidMessage, match="has NaN or infinity where None may be"):
        codec.encode(payload)
    with pytest.raises(InvalidMessage, match="has NaN or infinity where None may be"):
        codec.encode_all([payload, payload])


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (Loose, Loose(value=["null", None, 1.5, "NaN"])),
        (Open, Open.model_validate({"a": None})),
        (Plain, Plain(None, [None])),
        (dict, {"a": None, "NaN": "Infinity"}),
        (Named, Named(value=[INFINITY, None])),
    ],
)
def test_none_without_a_type_travels(type_: Any, payload: Any) -> None:
    codec = Codec[Any](type_)

    assert codec.decode(*codec.encode(payload)) == payload


class Order(BaseModel):
    number: int


class Gift(Order):
    card: str = ""


class Renamed(Order):
    def label(self) -> str:
        return f"order {self.number}"


class Told(BaseModel):
    number: int

    @model_serializer
    def tell(self) -> dict[str, Any]:
        return {"number": self.number, "kind": type(self).__name__}


class ToldMore(Told):
    card: str = ""


class Boxed(BaseModel, Generic[T]):
    inside: T


@dataclass
class Base:
    number: int


@dataclass
class Derived(Base):
    card: str = ""


@pytest.mark.parametrize(
    ("type_", "payload"),
    [(Order, Gift(number=1)), (Order | str, Gift(number=1)), (Base, Derived(1)), (Base | None, Derived(1))],
)
def test_a_subclass_whose_own_fields_would_be_lost_is_refused(type_: Any, payload: Any) -> None:
    codec = Codec[Any](type_)
    with pytest.raises(InvalidMessage, match=r"a subclass whose own fields would be lost \(card\)"):
        codec.encode(payload)
    with pytest.raises(InvalidMessage, match=r"a subclass whose own fields would be lost \(card\)"):
        codec.encode_all([payload, payload])


@pytest.mark.parametrize(
    ("type_", "payload", "body"),
    [
        (Order, Renamed(number=1), b'{"number":1}'),
        (SerializeAsAny[Order], Gift(number=1), b'{"number":1,"card":""}'),
        (Told, ToldMore(number=1), b'{"number":1,"kind":"ToldMore"}'),
        (Boxed, Boxed[int](inside=1), b'{"inside":1}'),
    ],
)
def test_a_subclass_of_which_nothing_is_lost_is_written(type_: Any, payload: Any, body: bytes) -> None:
    assert Codec[Any](type_).encode(payload)[0] == body


@dataclass
class Sealed:
    number: int
    secret: InitVar[str]


@dataclass
class Optional:
    number: int
    secret: InitVar[str] = ""


@pydantic.dataclasses.dataclass(config=ConfigDict(extra="forbid"))
class Counted:
    number: int
    twice: int = field(init=False, default=0)


def test_a_required_init_var_is_refused_because_it_is_never_written() -> None:
    with pytest.raises(ConfigurationError, match="'secret' of Sealed is an InitVar"):
        Codec(Sealed)

    codec = Codec(Optional)
    assert codec.decode(*codec.encode(Optional(1, "x"))) == Optional(1)


def test_a_field_that_is_no_argument_is_refused_where_extra_fields_are_forbidden() -> None:
    with pytest.raises(ConfigurationError, match="forbids extra fields, and its field 'twice'"):
        Codec(Counted)


class Foreign:
    """What pydantic knows nothing of, as a class of attrs or a Struct of msgspec."""


@pytest.mark.parametrize("type_", [Foreign, list[Foreign], Plain | Foreign])
def test_a_class_that_pydantic_does_not_know_is_refused_with_what_can_be_carried(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match="What can be carried is a dataclass") as refused:
        Codec[Any](type_)

    assert "arbitrary_types_allowed" not in str(refused.value), "it would be read and never written"
