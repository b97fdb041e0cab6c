"""Takes what was ordered off the shelf."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from examples.checkout.orders import OrderPlaced, orders
from examples.checkout.report import Ledger, ledger, traced
from messaging import App, Bus, Delivery


class Stock:
    """How many of each SKU were taken."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    def take(self, order: OrderPlaced) -> None:
        for line in order.lines:
            self.taken[line.sku] += line.quantity


@asynccontextmanager
async def resources(_bus: Bus) -> AsyncGenerator[tuple[Stock, Ledger]]:
    yield Stock(), ledger


app = App("inventory", lifespan=resources, middleware=[traced])


@app.subscribe(orders, idempotent=True)
async def reserve(order: OrderPlaced, delivery: Delivery, stock: Stock, ledger: Ledger) -> None:
    stock.take(order)
    ledger.handled("inventory", order, attempt=delivery.attempt)
