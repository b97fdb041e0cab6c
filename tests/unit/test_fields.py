import json
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    model_validator,
)
from typing_extensions import TypedDict

from messaging import codec as codec_module
from messaging.codec import Codec, register
from messaging.errors import ConfigurationError, InvalidMessage


class Order(BaseModel):
    order_id: int = Field(alias="orderId")


class Defaulted(BaseModel):
    order_id: int = Field(default=0, alias="orderId")


class Either(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    order_id: int = Field(alias="orderId")


class Chosen(BaseModel):
    order_id: int = Field(validation_alias=AliasChoices("id", AliasPath("ids", 0)), serialization_alias="id")


class Tree(BaseModel):
    order_id: int = Field(alias="orderId")
    under: "list[Tree]" = []


class Dictionary(TypedDict):
    order_id: Annotated[int, Field(validation_alias="orderId")]


@pytest.fixture(autouse=True)
def _another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "_formats", {})
    register("application/x-plain", lambda plain: json.dumps(plain).encode(), json.loads)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-plain"])
@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (Order, Order(orderId=7)),
        (Defaulted, Defaulted(orderId=7)),
        (Either, Either(orderId=7)),
        (Chosen, Chosen.model_validate({"id": 7})),
        (Tree, Tree(orderId=1, under=[Tree(orderId=2)])),
        (list[Order], [Order(orderId=7)]),
    ],
)
def test_a_field_is_read_by_the_name_that_it_is_written_by(
    type_: Any, payload: Any, content_type: str
) -> None:
    codec = Codec(type_, content_type=content_type)

    assert codec.decode(*codec.encode(payload)) == payload
    assert [codec.decode(*one) for one in codec.encode_all([payload] * 2)] == [payload] * 2


def test_what_was_written_by_the_name_can_still_be_read_where_both_are_allowed() -> None:
    codec = Codec(Either)

    assert codec.encode(Either(orderId=7))[0] == b'{"orderId":7}'
    assert codec.decode(b'{"order_id":7}', None) == Either(orderId=7)


class ReadOnly(BaseModel):
    order_id: int = Field(default=0, validation_alias="orderId")


class WriteOnly(BaseModel):
    order_id: int = Field(default=0, serialization_alias="orderId")


class OtherChoices(BaseModel):
    order_id: int = Field(validation_alias=AliasChoices("id", AliasPath("order_id", 0)))


class Within(BaseModel):
    orders: dict[str, list["Within | ReadOnly | None"]] = {}


@dataclass
class Line:
    order_id: Annotated[int, Field(validation_alias="orderId")]


@pytest.mark.parametrize(
    ("type_", "owner"),
    [
        (ReadOnly, "ReadOnly"),
        (WriteOnly, "WriteOnly"),
        (OtherChoices, "OtherChoices"),
        (list[ReadOnly], "ReadOnly"),
        (Within, "ReadOnly"),
        (Line, "Line"),
        (Dictionary, "Dictionary"),
    ],
)
def test_a_field_that_is_written_by_a_name_that_is_not_read_is_refused(type_: Any, owner: str) -> None:
    with pytest.raises(ConfigurationError, match=f"field 'order_id' of {owner} is written as .* and read as"):
        Codec(type_)


def test_what_a_validator_may_rename_is_its_authors() -> None:
    class Renamed(BaseModel):
        order_id: int = Field(serialization_alias="orderId")

        @model_validator(mode="before")
        @classmethod
        def rename(cls, value: Any) -> Any:
            return {"order_id": value["orderId"]} if "orderId" in value else value

    codec = Codec(Renamed)

    assert codec.decode(*codec.encode(Renamed(order_id=7))) == Renamed(order_id=7)


def test_a_field_that_is_required_and_never_written_is_refused() -> None:
    class Required(BaseModel):
        note: str = Field(exclude=True)

    class Local(BaseModel):
        note: str = Field(default="", exclude=True)

    with pytest.raises(ConfigurationError, match="field 'note' of Required is required and excluded"):
        Codec(Required)
    Codec(Local)


class Total(BaseModel):
    cents: int

    @computed_field
    def euros(self) -> float:
        return self.cents / 100


class ClosedTotal(Total):
    model_config = ConfigDict(extra="forbid")


class Told(ClosedTotal):
    @model_validator(mode="before")
    @classmethod
    def leave_out(cls, value: Any) -> Any:
        return {"cents": value["cents"]}


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    total: Total | Told


def test_a_computed_field_is_refused_where_no_other_field_may_be_read() -> None:
    class Around(BaseModel):
        totals: list[ClosedTotal] = []

    for type_ in (ClosedTotal, Around):
        with pytest.raises(
            ConfigurationError, match="ClosedTotal forbids extra fields, .* field 'euros' is one"
        ):
            Codec(type_)


@pytest.mark.parametrize("payload", [Total(cents=5), Told(cents=5), Closed(total=Total(cents=5))])
def test_a_computed_field_is_written_where_it_can_be_read(payload: BaseModel) -> None:
    codec = Codec(type(payload))
    body, content_type = codec.encode(payload)

    assert b'"euros":0.05' in body
    assert codec.decode(body, content_type) == payload


def test_a_json_text_is_refused_unless_something_reads_what_it_is_written_as() -> None:
    class Raw(BaseModel):
        lines: Json[list[int]] | None = None

    class Both(BaseModel):
        lines: Json[list[int]] | list[int]

    class Written(BaseModel):
        lines: Json[list[int]]

        @field_serializer("lines")
        def write(self, lines: list[int]) -> str:
            return json.dumps(lines)

    with pytest.raises(ConfigurationError, match="field 'lines' of Raw is a Json"):
        Codec(Raw)
    for type_ in (Both, Written):
        codec: Codec[Any] = Codec(type_)
        payload = type_.model_validate({"lines": "[1]"})
        assert codec.decode(*codec.encode(payload)) == payload


def test_a_secret_that_would_arrive_as_asterisks_is_refused() -> None:
    class Login(BaseModel):
        password: SecretStr

    class Keys(BaseModel):
        keys: list[SecretBytes | None] = []

    class Shown(BaseModel):
        password: SecretStr

        @field_serializer("password")
        def show(self, value: SecretStr) -> str:
            return value.get_secret_value()

    with pytest.raises(ConfigurationError, match="field 'password' of Login is a secret"):
        Codec(Login)
    with pytest.raises(ConfigurationError, match="field 'keys' of Keys is a secret"):
        Codec(Keys)
    with pytest.raises(ConfigurationError, match="SecretStr is a secret"):
        Codec(SecretStr)
    codec = Codec(Shown)
    assert codec.decode(*codec.encode(Shown(password=SecretStr("x")))).password.get_secret_value() == "x"


@dataclass
class Scan:
    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    image: bytes


class Written(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")

    image: bytes


class Read(BaseModel):
    model_config = ConfigDict(val_json_bytes="hex")

    images: list[bytes] = []


@pytest.mark.parametrize("type_", [Written, Read, list[Written]])
def test_bytes_that_would_arrive_in_another_form_are_refused(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"give ser_json_bytes and val_json_bytes .* one value"):
        Codec(type_)


def test_bytes_of_one_form_arrive_as_they_are() -> None:
    codec = Codec(Scan)

    assert codec.decode(*codec.encode(Scan(b"\xff\x00"))) == Scan(b"\xff\x00")


def test_bytes_that_json_cannot_hold_are_refused_with_the_way_out() -> None:
    class Image(BaseModel):
        image: bytes

    with pytest.raises(InvalidMessage, match=r'Image has bytes in a field .* val_json_bytes="base64"'):
        Codec(Image).encode(Image(image=b"\xff"))
