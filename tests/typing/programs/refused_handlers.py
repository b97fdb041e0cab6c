"""Wrong handlers: each marked line must be refused, and no other."""

from pydantic import BaseModel

from messaging import Ack, App, Delivery, Outcome, Topic


class Order(BaseModel):
    customer_id: str


class Click(BaseModel):
    url: str


orders = Topic("orders", Order)
either = Topic("either", Order | Click)
app = App("billing")


@app.subscribe(orders)  # error
async def wrong_payload(click: Click) -> None: ...


@app.subscribe(either)  # error
async def only_one_member(order: Order) -> None: ...


@app.subscribe(orders)  # error
async def wrong_result(order: Order) -> int:
    return 1


@app.subscribe(orders)  # error
def wrong_result_in_a_thread(order: Order) -> str:
    return order.customer_id


@app.subscribe(orders)  # error
async def no_payload() -> None: ...


@app.subscribe("orders")  # error
async def no_topic(order: Order) -> None: ...


@app.subscribe(orders, concurrency="many")  # error
async def wrong_option(order: Order) -> None: ...


@app.subscribe(orders)
async def right(order: Order, delivery: Delivery[Order]) -> Outcome:
    return Ack()


async def call_it_wrongly(click: Click) -> None:
    await right(click, Delivery(Order(customer_id="c1")))  # error
