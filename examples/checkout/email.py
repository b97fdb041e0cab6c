"""Writes to customers: that the order has come, and that it is paid."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from examples.checkout.orders import OrderPlaced, PaymentTaken, orders, payments
from examples.checkout.report import Ledger, ledger, traced
from messaging import App, Bus, Delivery, RetryPolicy, fixed

GREYLISTING = "@slowmail.example"


class GreylistedError(Exception):
    """The receiving server wants the mail to be offered once more."""


class MailServer:
    """A server that some domains' servers turn away the first time."""

    def __init__(self) -> None:
        self._offered: set[tuple[str, str]] = set()

    async def send(self, address: str, subject: str) -> None:
        first_offer = (address, subject) not in self._offered
        self._offered.add((address, subject))
        if address.endswith(GREYLISTING) and first_offer:
            raise GreylistedError(f"{address} is greylisted")


@asynccontextmanager
async def resources(_bus: Bus) -> AsyncGenerator[tuple[MailServer, Ledger]]:
    yield MailServer(), ledger


app = App("email", lifespan=resources, middleware=[traced], retry=RetryPolicy(5, fixed(0.25)))


@app.subscribe(orders, idempotent=True)
async def confirm(order: OrderPlaced, delivery: Delivery, mail: MailServer, ledger: Ledger) -> None:
    await mail.send(order.email, f"We have your order {order.order_id}")
    ledger.handled("email", order, attempt=delivery.attempt)


@app.subscribe(payments, idempotent=True)
async def receipt(paid: PaymentTaken, mail: MailServer, ledger: Ledger) -> None:
    await mail.send(paid.email, f"{paid.amount} {paid.currency} paid for order {paid.order_id}")
    ledger.receipts[paid.order_id] += 1
