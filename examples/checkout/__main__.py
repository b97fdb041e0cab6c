"""An online shop of several services in one process, on the broker that the settings name.

    python -m examples.checkout
    MESSAGING_URL=redis://localhost python -m examples.checkout
    MESSAGING_URL=amqp://localhost python -m examples.checkout
    MESSAGING_URL=kafka://localhost python -m examples.checkout
    MESSAGING_URL=sqs://eu-central-1 python -m examples.checkout

`[routes]` in the settings gives some of its topics another broker: see docs/configuration.md.

Exits with 1 when a promise was broken, with 2 when the broker cannot be used.
"""

import argparse
import asyncio
import logging
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from examples.checkout import analytics, catalogue, email, inventory, payment
from examples.checkout.gateway import ProductPage, product_page
from examples.checkout.orders import BadLine, OrderPlaced, orders, payments, read_orders
from examples.checkout.report import GROUPS, judge, ledger, print_summary, trace
from messaging import App, Bus, Message, MessagingError, Settings, connect

HERE = Path(__file__).parent
LOOK = 0.05
"""Seconds between two looks whether all is handled."""


# All services in one process. Each could be a process of its own, unchanged: `app.serve(connect())`.
shop = App("checkout")
for service in (payment, inventory, email, analytics, catalogue):
    shop.include(service.app)


async def show_page(bus: Bus, sku: str) -> ProductPage | None:
    """The page, or None for one that could not be put together."""
    try:
        return await product_page(bus, sku)
    except* MessagingError as failed:
        trace("gateway", f"no page of {sku}: {failed.exceptions[0]}")
    return None


async def show_pages(bus: Bus) -> None:
    """Ask for every product's page at once: three requests each, all on one connection."""
    async with asyncio.TaskGroup() as visitors:
        pages = {sku: visitors.create_task(show_page(bus, sku)) for sku in catalogue.SHELF}
    ledger.pages = {sku: page.result() for sku, page in pages.items()}
    sku, page = next(iter(ledger.pages.items()))
    if page is not None:
        trace("gateway", f"{sku}: {page.product.name} for {page.price.amount} {page.price.currency}")


async def place_orders(bus: Bus, placed: Sequence[OrderPlaced]) -> None:
    """Each publish returns when the broker has confirmed it. An order that is sent twice keeps its id."""
    for order in placed:
        await bus.publish(orders, order, id=order.order_id)
    trace("shop", f"{len(placed)} orders placed")


async def settled(bus: Bus) -> bool:
    """Each order is handled by each group or is a dead letter of it, and each payment has its receipt."""
    for group in GROUPS:
        dead = await bus.dead_letters(orders, group=group).count()
        if ledger.missing(group).total() > dead:
            return False
    return not ledger.without_receipt()


async def until_settled(bus: Bus, patience: float) -> None:
    """Look again and again: no broker tells when it has stored a dead letter.

    Patience ends when so long nothing was handled. The looks are counted, not the time: a machine that is slow, or
    asleep, uses up none of it.
    """
    done, idle = ledger.done(), 0
    while not await settled(bus):
        before, done = done, ledger.done()
        idle = idle + 1 if done == before else 0
        if idle * LOOK >= patience:
            raise TimeoutError
        await asyncio.sleep(LOOK)


async def mend_payments(bus: Bus) -> None:
    """Show the orders that payment gave up, correct their currency, and hand them to payment again."""
    letters = bus.dead_letters(orders, group="payment")
    async for letter in letters.browse():
        ledger.dead.add(letter.id)
        trace("payment", f"{letter.id} is a dead letter ({letter.cause}): {letter.reason}")
    mended = await letters.redrive(edit=with_legal_currency)
    trace("shop", f"{mended} dead letter(s) corrected and redriven")


def with_legal_currency(message: Message) -> Message:
    order = OrderPlaced.model_validate_json(message.body)
    corrected = order.model_copy(update={"currency": "EUR"})
    return replace(message, body=corrected.model_dump_json().encode())


def shop_bus() -> Bus:
    """On the brokers of the settings; in memory where they name none. Runs on one broker do not see each other."""
    settings = Settings.load(store="memory://", namespace=f"checkout-{uuid.uuid4().hex[:8]}")
    return connect(settings if settings.url else settings.model_copy(update={"url": "memory://"}))


async def run(bus: Bus, patience: float) -> None:
    """Run the shop until all is handled, or until patience ends: then the ledger shows what is missing."""
    async with bus:
        try:
            async with shop.running(bus):
                await show_pages(bus)
                await place_orders(bus, ledger.submitted)
                await until_settled(bus, patience)
                await mend_payments(bus)
                await until_settled(bus, patience)
        except TimeoutError:
            trace("shop", f"not all was handled, and nothing more for {patience:g} s")
        finally:
            await leave_nothing(bus)


async def leave_nothing(bus: Bus) -> None:
    for known in await bus.groups():
        await bus.delete_group(known.topic, known.group)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.checkout", description="A shop, on any broker.")
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "orders.jsonl", help="one order a line")
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long to wait while nothing is handled (60)",
    )
    options = parser.parse_args(arguments)
    file: Path = options.file
    logging.basicConfig(stream=sys.stdout, format="          log        %(message)s")

    read = list(read_orders(file, catalogue.SHELF))
    ledger.submitted = [line for line in read if isinstance(line, OrderPlaced)]
    ledger.bad_lines = [line for line in read if isinstance(line, BadLine)]
    for bad in ledger.bad_lines:
        trace("shop", f"{file.name} line {bad.number} is no order: {bad.problem}")

    try:
        bus = shop_bus()
        for topic in (orders, payments, catalogue.products):
            trace("shop", f"{topic.name} lives on {bus.broker(topic).name}")
        asyncio.run(run(bus, options.patience))
    except MessagingError as error:
        print(f"the shop cannot run: {error}", file=sys.stderr)
        return 2

    promises = judge(
        ledger,
        lines=sum(bool(line.strip()) for line in file.read_bytes().split(b"\n")),
        slow={order.order_id for order in ledger.submitted if order.card.startswith(payment.SLOW_BANK)},
        poison={order.order_id for order in ledger.submitted if order.currency not in payment.CURRENCIES},
    )
    print_summary(ledger, promises, " and ".join(broker.name for broker in bus.routing.brokers))
    return 0 if all(promise.kept for promise in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
