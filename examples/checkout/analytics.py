"""Counts what is bought. A duplicate does no harm here: it is counted, so no idempotency is asked for."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from examples.checkout.orders import OrderPlaced, orders
from examples.checkout.report import Ledger, ledger, traced
from messaging import App, Bus, Delivery


@asynccontextmanager
async def resources(_bus: Bus) -> AsyncGenerator[Ledger]:
    yield ledger


app = App("analytics", lifespan=resources, middleware=[traced])


@app.subscribe(orders, concurrency=8)
async def count(order: OrderPlaced, delivery: Delivery, ledger: Ledger) -> None:
    ledger.handled("analytics", order, attempt=delivery.attempt)
