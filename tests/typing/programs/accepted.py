"""A service as the documentation writes it: nothing here may be refused."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal, assert_type

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from messaging import (
    Ack,
    App,
    Bus,
    Delivery,
    Endpoint,
    Handler,
    Outcome,
    Receipt,
    Reject,
    Release,
    Retry,
    RetryPolicy,
    Topic,
    connect,
    exponential,
)


class OrderPlaced(BaseModel):
    kind: Literal["placed"] = "placed"
    customer_id: str


class OrderCancelled(BaseModel):
    kind: Literal["cancelled"] = "cancelled"
    customer_id: str


@dataclass
class PriceQuery:
    product: str


class Price(BaseModel):
    amount: int


class Address(TypedDict):
    city: str


class Db:
    async def charge(self, order: OrderPlaced | OrderCancelled) -> None: ...


orders = Topic("orders", OrderPlaced | OrderCancelled, key=lambda order: order.customer_id, ordered=True)
placed = Topic("placed", OrderPlaced)
quotes = Endpoint("prices.quote", PriceQuery, Price | None)
anything = Topic("anything")
assert_type(orders, Topic[OrderPlaced | OrderCancelled])
assert_type(placed, Topic[OrderPlaced])
assert_type(quotes, Endpoint[PriceQuery, Price | None])
assert_type(anything, Topic[Any])
assert_type(Topic("raw", bytes), Topic[bytes])
assert_type(Topic("lists", list[PriceQuery]), Topic[list[PriceQuery]])
assert_type(Topic("addresses", Address), Topic[Address])
assert_type(
    Topic("tagged", Annotated[OrderPlaced | OrderCancelled, Field(discriminator="kind")]),
    Topic[OrderPlaced | OrderCancelled],
)
declared: Topic[OrderPlaced | OrderCancelled] = Topic("declared", OrderPlaced | OrderCancelled)


@asynccontextmanager
async def resources(bus: Bus) -> AsyncGenerator[Db]:
    yield Db()


def tenant(next: Handler) -> Handler:
    async def handle(delivery: Delivery) -> Outcome:
        delivery.headers.setdefault("tenant", "none")
        return await next(delivery)

    return handle


app = App(
    "billing", lifespan=resources, middleware=[tenant], retry=RetryPolicy(3, exponential(0.2, maximum=30))
)


@app.subscribe(orders, concurrency=64, timeout=30, idempotent=True)
async def charge(order: OrderPlaced | OrderCancelled, delivery: Delivery, db: Db, bus: Bus) -> Outcome | None:
    if not order.customer_id:
        return Reject("no customer")
    await db.charge(order)
    return None


@app.subscribe(orders, group="audit", timeout=timedelta(seconds=3), idempotent=lambda message: message.id)
async def audit(
    order: OrderPlaced | OrderCancelled, delivery: Delivery[OrderPlaced | OrderCancelled]
) -> None:
    assert_type(delivery.payload, OrderPlaced | OrderCancelled)


@app.subscribe(orders, group="wider")
async def takes_more(order: BaseModel) -> Outcome:
    return Ack()


@app.subscribe(placed, group="threads")
def synchronous(order: OrderPlaced) -> Outcome | None:
    return Retry(after=3) if order.customer_id else Release()


@app.subscribe(placed, group="plain")
def returns_nothing(order: OrderPlaced) -> None: ...


@app.subscribe(anything)
async def untyped(payload: object) -> None: ...


@app.respond(quotes)
async def quote(ask: PriceQuery) -> Price | None:
    return Price(amount=1) if ask.product else None


@app.respond(quotes, group="synchronous")
def quote_synchronously(ask: PriceQuery, db: Db) -> Price:
    return Price(amount=2)


async def main() -> None:
    bus = connect("memory://")
    async with bus, app.running(bus):
        receipt = await bus.publish(orders, OrderPlaced(customer_id="c1"), timeout=5)
        assert_type(receipt, Receipt)
        await bus.publish(orders, OrderCancelled(customer_id="c1"), key=b"k", headers={"a": "b"})
        await bus.publish_many(placed, [OrderPlaced(customer_id="c1")])
        # mypy joins the members of a mixed list to their common base unless the list says its type.
        mixed: list[OrderPlaced | OrderCancelled] = [
            OrderPlaced(customer_id="c1"),
            OrderCancelled(customer_id="c2"),
        ]
        await bus.publish_many(orders, mixed)
        await bus.publish("orders", {"free": "form"})
        await bus.publish(anything, 3)
        price = await bus.request(quotes, PriceQuery("p1"), timeout=2)
        assert_type(price, Price | None)
        async with bus.consume(orders, group="manual") as pull:
            async for delivery in pull:
                assert_type(delivery.payload, OrderPlaced | OrderCancelled)
                await pull.settle(delivery, Ack())


async def test_charge(bus: Bus) -> None:
    order = OrderPlaced(customer_id="")
    outcome = await charge(order, Delivery(order, attempt=2), Db(), bus)
    assert_type(outcome, Outcome | None)
