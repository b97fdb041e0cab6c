"""What happened, told while it happens and judged when it is over.

The ledger stands in for what each service of a real shop has in its own database: here it is one place, so
that the example can check itself. Services only write to it; `__main__` and the promises below read.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from examples.checkout.gateway import ProductPage
from examples.checkout.orders import BadLine, OrderPlaced
from messaging import Delivery, Handler, Outcome

GROUPS = ("payment", "inventory", "email", "analytics")
IDEMPOTENT = ("payment", "inventory", "email")

_started = time.perf_counter()


def trace(who: str, what: str) -> None:
    print(f"{time.perf_counter() - _started:8.3f}  {who:<10} {what}", flush=True)


def traced(next: Handler) -> Handler:
    """A middleware that shows each failure and leaves what becomes of it to the retry policy."""

    async def handle(delivery: Delivery) -> Outcome:
        try:
            return await next(delivery)
        except Exception as error:
            trace(delivery.group, f"{delivery.message.id} failed at attempt {delivery.attempt}: {error}")
            raise

    return handle


@dataclass(frozen=True)
class Handled:
    """One order that one group has handled."""

    order_id: str
    customer_id: str
    attempt: int


class Ledger:
    """What was sent, what each group did with it, and in which order."""

    def __init__(self, submitted: Iterable[OrderPlaced] = (), bad_lines: Iterable[BadLine] = ()) -> None:
        self.submitted = list(submitted)
        self.bad_lines = list(bad_lines)
        self.handled_by: dict[str, list[Handled]] = {group: [] for group in GROUPS}
        self.receipts: Counter[str] = Counter()
        self.dead: set[str] = set()
        self.pages: dict[str, ProductPage | None] = {}

    def handled(self, group: str, order: OrderPlaced, *, attempt: int) -> None:
        self.handled_by[group].append(Handled(order.order_id, order.customer_id, attempt))
        if order.customer_id == self.submitted[0].customer_id or order.order_id in self.dead:
            trace(group, f"{order.order_id} of {order.customer_id} handled at attempt {attempt}")

    def times(self, group: str) -> Counter[str]:
        """How often a group handled each order."""
        return Counter(handled.order_id for handled in self.handled_by[group])

    def done(self) -> int:
        """How much was done so far: as long as this grows, the run goes on."""
        return sum(map(len, self.handled_by.values())) + self.receipts.total()

    def missing(self, group: str) -> Counter[str]:
        """How often a group has yet to handle each order: once, or as often as it was sent."""
        sent = Counter(order.order_id for order in self.submitted)
        return (Counter(sent.keys()) if group in IDEMPOTENT else sent) - self.times(group)

    def without_receipt(self) -> set[str]:
        """The orders that are paid, but whose customer was not told yet."""
        return self.times("payment").keys() - self.receipts.keys()

    def duplicates(self, group: str) -> int:
        """How many handlings beyond the first of each order."""
        return sum(count - 1 for count in self.times(group).values())


ledger = Ledger()
"""Of this process: the services write to it, `__main__` reads."""


@dataclass(frozen=True)
class Promise:
    """Something that the library promises, and what spoke against it in this run."""

    text: str
    breaches: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return not self.breaches


def judge(ledger: Ledger, *, lines: int, slow: set[str], poison: set[str]) -> list[Promise]:
    """Hold the run against what was promised.

    `lines` is the number of lines in the file, `slow` are the orders whose payment provider fails twice,
    `poison` those that it never takes: what the file holds, not what the run says it met.
    """
    return [
        Promise("every line is an order or is reported", tuple(_unread(ledger, lines))),
        Promise("every group handles every order", tuple(_lost(ledger))),
        Promise(
            "an order sent twice is handled once where the group is idempotent", tuple(_repeated(ledger))
        ),
        Promise("one customer's orders are handled in order", tuple(_overtaken(ledger))),
        Promise("a payment that fails twice is taken at the third attempt", tuple(_unretried(ledger, slow))),
        Promise("a poison order is a dead letter until it is mended", tuple(_unmended(ledger, poison))),
        Promise("every payment has one receipt", tuple(_without_receipt(ledger))),
        Promise("a page is put together from three replies", tuple(_without_page(ledger))),
    ]


def _unread(ledger: Ledger, lines: int) -> Iterator[str]:
    accounted = len(ledger.submitted) + len(ledger.bad_lines)
    if accounted != lines:
        yield f"{lines} lines, but {accounted} orders and reports"


def _lost(ledger: Ledger) -> Iterator[str]:
    for group in GROUPS:
        for order_id in sorted(ledger.missing(group)):
            yield f"{group} did not handle {order_id}"


def _repeated(ledger: Ledger) -> Iterator[str]:
    for group in IDEMPOTENT:
        for order_id, times in ledger.times(group).items():
            if times > 1:
                yield f"{group} handled {order_id} {times} times"


def _overtaken(ledger: Ledger) -> Iterator[str]:
    """Of each order the first handling counts; one that was redriven has lost its place, as promised."""
    placed = [(order.customer_id, order.order_id) for order in ledger.submitted]
    for group in GROUPS:
        redriven: set[str] = ledger.dead if group == "payment" else set()
        handled = [(each.customer_id, each.order_id) for each in ledger.handled_by[group]]
        expected, seen = _sequences(placed, redriven), _sequences(handled, redriven)
        for customer, sequence in seen.items():
            if sequence != [order_id for order_id in expected[customer] if order_id in sequence]:
                yield f"{group} handled the orders of {customer} as {', '.join(sequence)}"


def _sequences(orders: Iterable[tuple[str, str]], without: set[str]) -> dict[str, list[str]]:
    """Each customer's orders in the order in which they come first."""
    sequences: dict[str, list[str]] = {}
    for customer_id, order_id in dict.fromkeys(orders):
        if order_id not in without:
            sequences.setdefault(customer_id, []).append(order_id)
    return sequences


def _unretried(ledger: Ledger, slow: set[str]) -> Iterator[str]:
    attempts = {handled.order_id: handled.attempt for handled in ledger.handled_by["payment"]}
    for order_id in sorted(slow):
        if attempts.get(order_id) != 3:
            yield f"{order_id} was paid at attempt {attempts.get(order_id, 'none')}"


def _unmended(ledger: Ledger, poison: set[str]) -> Iterator[str]:
    if ledger.dead != poison:
        yield f"dead letters are {sorted(ledger.dead)}, poison is {sorted(poison)}"
    paid = ledger.times("payment")
    for order_id in sorted(poison):
        if not paid[order_id]:
            yield f"{order_id} was not paid after its correction"


def _without_receipt(ledger: Ledger) -> Iterator[str]:
    for order_id in sorted(ledger.without_receipt()):
        yield f"no receipt for {order_id}"
    for order_id, times in ledger.receipts.items():
        if times > 1:
            yield f"{times} receipts for {order_id}"


def _without_page(ledger: Ledger) -> Iterator[str]:
    if not ledger.pages:
        yield "no page was asked for"
    for sku, page in ledger.pages.items():
        if page is None or page.product.sku != sku or not page.price.amount:
            yield f"{sku} has the page {page}"


def print_summary(ledger: Ledger, promises: Iterable[Promise], brokers: str) -> None:
    different = len({order.order_id for order in ledger.submitted})
    repeated = len(ledger.submitted) - different
    print(f"\nsummary on {brokers}")
    print(f"  file        {different} orders, {repeated} sent twice, {len(ledger.bad_lines)} bad lines")
    for group in GROUPS:
        done = ledger.handled_by[group]
        retried = sum(handled.attempt > 1 for handled in done)
        print(
            f"  {group:<11} {len(ledger.times(group))} orders, {retried} after retries, "
            f"{ledger.duplicates(group)} duplicates"
        )
    print(f"  receipts    {ledger.receipts.total()}")
    print(f"  mended      {', '.join(sorted(ledger.dead)) or 'nothing'}")
    print(f"  pages       {len(ledger.pages)}\n\npromises")
    for promise in promises:
        print(f"  {'kept  ' if promise.kept else 'BROKEN'}  {promise.text}")
        for breach in promise.breaches[:10]:
            print(f"            {breach}")
        if len(promise.breaches) > 10:
            print(f"            and {len(promise.breaches) - 10} more")
