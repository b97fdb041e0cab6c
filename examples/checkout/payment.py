"""Takes the money. Its provider is sometimes down, and does not know every currency."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from examples.checkout.orders import OrderPlaced, PaymentTaken, orders, payments
from examples.checkout.report import Ledger, ledger, traced
from messaging import App, Bus, Delivery, RetryPolicy, exponential

CURRENCIES = {"CHF", "EUR", "GBP"}
SLOW_BANK = "tok_slowbank"


class ProviderDownError(Exception):
    """The provider did not answer; the same call may succeed later."""


class Provider:
    """Another company's service. The bank of `SLOW_BANK` cards answers only the third call for an order."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    async def charge(self, order: OrderPlaced) -> None:
        if order.currency not in CURRENCIES:
            raise ValueError(f"the provider knows no currency {order.currency!r}")
        self._calls[order.order_id] += 1
        if order.card.startswith(SLOW_BANK) and self._calls[order.order_id] <= 2:
            raise ProviderDownError("the bank did not answer")


@asynccontextmanager
async def resources(_bus: Bus) -> AsyncGenerator[tuple[Provider, Ledger]]:
    yield Provider(), ledger


app = App(
    "payment",
    lifespan=resources,
    middleware=[traced],
    retry=RetryPolicy(3, exponential(0.2, maximum=30)),
)


@app.subscribe(orders, idempotent=True)
async def charge(
    order: OrderPlaced, delivery: Delivery, provider: Provider, bus: Bus, ledger: Ledger
) -> None:
    await provider.charge(order)
    paid = PaymentTaken(
        order_id=order.order_id, email=order.email, amount=order.total, currency=order.currency
    )
    await bus.publish(payments, paid, id=f"{order.order_id}.paid")
    ledger.handled("payment", order, attempt=delivery.attempt)
