"""Wrong payloads: each marked line must be refused, and no other."""

from pydantic import BaseModel

from messaging import App, Bus, Topic


class Order(BaseModel):
    customer_id: str


class Click(BaseModel):
    url: str


orders = Topic("orders", Order)
either = Topic("either", Order | Click)


async def publish(bus: Bus) -> None:
    await bus.publish(orders, Click(url="/"))  # error
    await bus.publish(orders, {"customer_id": "c1"})  # error
    await bus.publish(orders, None)  # error
    await bus.publish(either, "text")  # error
    await bus.publish_many(orders, [Click(url="/")])  # error
    await bus.publish(orders, Order(customer_id="c1"), key=7)  # error
    await bus.publish(orders, Order(customer_id="c1"), headers={"a": 1})  # error


wider: Topic[Order | Click] = orders  # error
narrower: Topic[Order] = either  # error
keyed = Topic("keyed", Order, key=lambda order: order.customer)  # error
no_key = Topic("keyed", Order, key=lambda order: len(order.customer_id))  # error
no_app = App(name=3)  # error
