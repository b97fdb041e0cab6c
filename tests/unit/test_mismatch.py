"""A handler whose annotation says another payload than its topic carries."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Annotated, Any, Generic, NewType, Protocol, TypeVar

import pytest
from pydantic import AfterValidator, AwareDatetime, BaseModel, RootModel, model_validator
from typing_extensions import TypedDict

from messaging import App, ConfigurationError, Delivery, Endpoint, Topic

T = TypeVar("T")
Number = NewType("Number", str)


@dataclass(frozen=True)
class Order:
    id: str


class Invoice(BaseModel):
    cents: int


class Large(Invoice):
    pass


class Page(BaseModel, Generic[T]):
    items: list[T]


class Numbers(RootModel[list[int]]):
    pass


class HasId(Protocol):
    id: str


class Row(TypedDict):
    id: str


class Meta(type):
    def __subclasscheck__(cls, other: type) -> bool:
        return True


class Anything(metaclass=Meta):
    pass


class Parsed(BaseModel):
    """What another makes of a text."""

    @model_validator(mode="wrap")
    @classmethod
    def parse(cls, value: object, handler: Any) -> Any:
        return Order(str(value))


def subscribed(type_: Any, annotation: Any, app: App | None = None) -> None:
    async def handle(payload) -> None: ...

    handle.__annotations__["payload"] = annotation
    (app or App("shop")).subscribe(Topic("orders", type_))(handle)


@pytest.mark.parametrize(
    ("type_", "annotation", "said"),
    [
        (Order, Invoice, "takes a Invoice, and the topic carries Order"),
        (Invoice, Order, "takes a Order, and the topic carries Invoice"),
        (str, Order, "takes a Order, and the topic carries str"),
        (dict[str, Any], Order, "takes a Order, and the topic carries dict"),
        (bytes, str, "takes a str, and the topic carries bytes"),
        (int, Annotated[str, "a number"], "takes a str, and the topic carries int"),
        (Order | None, Invoice | Large, "takes a Invoice | Large, and the topic carries Order | NoneType"),
        (Order, Delivery[Order], "takes a Delivery, and the topic carries Order"),
        (Numbers, Invoice, "takes a Invoice, and the topic carries Numbers"),
    ],
)
def test_a_handler_of_another_payload_is_refused_with_both_names(
    type_: Any, annotation: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"of orders/shop {said}".replace("|", r"\|")):
        subscribed(type_, annotation)


def charge(order: Invoice) -> None: ...


def test_an_annotation_as_text_is_read_and_a_responder_is_told_too() -> None:
    app = App("shop")
    with pytest.raises(ConfigurationError, match="charge of orders/shop takes a Invoice"):
        app.subscribe(Topic("orders", Order))(charge)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="the endpoint carries Order"):
        app.respond(Endpoint("price", Order, int))(charge)  # type: ignore[arg-type]

    assert app.definitions == []


@pytest.mark.parametrize(
    ("type_", "annotation"),
    [
        (Order, Any),
        (Order, object),
        (Order, Order),
        (Order, Order | None),
        (Order, HasId),
        (Order, T),
        (Order, Annotated[Order, "said twice"]),
        (Order, "NotYetDefined"),
        (Order, "Order | NotYetDefined"),
        (Order, Anything),
        (Large, Invoice),
        (Invoice, Large),
        (str | Large, Invoice),
        (Page[int], Page),
        (Page[int], Page[int]),
        (Any, Order),
        (int, float),
        (bytes, bytearray),
        (bool, int),
        (str, Number),
        (Number, str),
        (dict[str, str], Row),
        (dict[str, str], Mapping),
        (dict[str, str], Mapping[str, str]),
        (list[int], Sequence),
        (Row, Order),
        (AwareDatetime, Order),
        (Annotated[str, AfterValidator(Order)], Order),
        (Parsed, Order),
    ],
)
def test_a_handler_that_could_work_is_taken(type_: Any, annotation: Any) -> None:
    subscribed(type_, annotation)


def test_what_middleware_or_a_decorator_may_pass_on_is_theirs() -> None:
    def parsing(next):
        async def handle(delivery):
            return await next(replaced(delivery, payload=Order(delivery.payload)))

        return handle

    def with_order(function):
        @functools.wraps(function)
        async def handle(text: str) -> None:
            await function(Order(text))

        return handle

    @with_order
    async def decorated(order: Order) -> None: ...

    texts = Topic("orders", str)
    subscribed(str, Order, App("shop", middleware=[parsing]))
    App("shop").subscribe(texts, middleware=[parsing])(lambda order: None)
    App("shop").subscribe(texts)(decorated)  # pyright: ignore[reportArgumentType]  what wraps says


def test_a_class_of_the_same_name_in_the_module_is_not_taken_for_the_one_of_the_function() -> None:
    @dataclass(frozen=True)
    class Invoice:
        id: str

    async def handle(invoice: Invoice) -> None: ...

    App("shop").subscribe(Topic("orders", Invoice))(handle)  # pyright: ignore[reportArgumentType]  it errs, too
