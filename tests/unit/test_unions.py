from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import pytest
from pydantic import BaseModel, Discriminator, Field, RootModel, Tag
from typing_extensions import TypedDict

from messaging.codec import Codec
from messaging.errors import ConfigurationError


class Price(BaseModel):
    amount: int


class Cost(BaseModel):
    amount: int


class Placed(BaseModel):
    kind: Literal["placed"] = Field("placed", alias="k")


class Cancelled(BaseModel):
    kind: Literal["cancelled"] = Field("cancelled", alias="k")


class ByName(BaseModel):
    kind: Literal["by name"] = "by name"


class NoneOrA(BaseModel):
    kind: Literal["a"] | None = "a"


class NoneOrB(BaseModel):
    kind: Literal["b"] | None = "b"


class Shown(BaseModel):
    kind: Literal["shown"] = "shown"


class Hidden(BaseModel):
    kind: Literal["hidden"] = Field("hidden", exclude=True)


class MaybeA(TypedDict):
    kind: NotRequired[Literal["a"]]


class MaybeB(TypedDict):
    kind: NotRequired[Literal["b"]]


class Numbers(RootModel[list[int]]):
    pass


class Others(RootModel[list[int]]):
    pass


class Name(RootModel[str]):
    pass


class Code(RootModel[str]):
    pass


class Either(RootModel[Price | Cost]):
    pass


def which(value: Any) -> str | None:
    """What a payload, or the JSON of one, is."""
    if isinstance(value, list):
        return "texts" if value and isinstance(value[0], str) else "numbers"
    if isinstance(value, dict):
        return "euro" if "amount" in value else "cent"
    return {Price: "euro", Cent: "cent"}.get(type(value))


class Cent(BaseModel):
    cents: int


Money = Annotated[Annotated[Price, Tag("euro")] | Annotated[Cent, Tag("cent")], Discriminator(which)]
Rows = Annotated[
    Annotated[list[int], Tag("numbers")] | Annotated[list[str], Tag("texts")], Discriminator(which)
]


class X(NamedTuple):
    x: int


class Y(NamedTuple):
    y: int


@pytest.mark.parametrize(
    "type_",
    [
        list[Price | Cost] | int,
        list[Price] | list[Cost],
        list[int] | set[int],
        dict[str, list[Price | Cost] | str],
        Placed | list[Price | Cost],
        Annotated[Placed | Cancelled, Field(discriminator="kind")] | list[Price | Cost],
        Placed | ByName,
        NoneOrA | NoneOrB,
        Shown | Hidden,
        MaybeA | MaybeB,
        Numbers | Others,
        Numbers | list[int],
        Name | Code,
        Name | str,
        Either,
        X | Y,
        Money | Cost,
        Rows | list[bool],
        Annotated[Annotated[Price | Cost, Tag("euro")] | Annotated[Cent, Tag("cent")], Discriminator(which)],
    ],
)
def test_members_that_look_the_same_are_refused(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be told apart"):
        Codec(type_)


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (Placed | Cancelled, Cancelled(k="cancelled")),
        (list[Placed | Cancelled] | int, [Cancelled(k="cancelled")]),
        (dict[str, list[Placed | Cancelled] | str], {"a": [Cancelled(k="cancelled")]}),
        (list[Price] | Cost, Cost(amount=1)),
        (Name | Price | int, Name("x")),
        (Numbers | Name, Numbers([1])),
        (X | Price | None, X(1)),
        (Money | int, Cent(cents=1)),
        (Money | list[Money] | None, [Price(amount=1)]),
        (Rows | Money, ["a"]),
    ],
)
def test_the_member_that_is_read_is_the_one_that_was_written(type_: Any, payload: Any) -> None:
    codec = Codec(type_)

    read = codec.decode(*codec.encode(payload))

    assert (type(read), read) == (type(payload), payload)
