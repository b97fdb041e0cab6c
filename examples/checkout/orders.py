"""What the shop's services say to each other: the payloads and the topics. Imported by all else."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from messaging import Topic

Text = Annotated[str, Field(min_length=1)]
Money = Annotated[Decimal, Field(ge=0, max_digits=9, decimal_places=2)]


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)


class OrderLine(Payload):
    sku: Text
    quantity: Annotated[int, Field(gt=0, strict=True)]
    unit_price: Money


class OrderPlaced(Payload):
    order_id: Text
    customer_id: Text
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
    currency: Text
    card: Text
    placed_at: datetime
    lines: Annotated[tuple[OrderLine, ...], Field(min_length=1)]

    @property
    def total(self) -> Decimal:
        return sum((line.quantity * line.unit_price for line in self.lines), Decimal(0))


class PaymentTaken(Payload):
    order_id: Text
    email: Text
    amount: Money
    currency: Text


# One customer's orders stay in order, in every group, also while one of them is being retried.
orders = Topic("checkout.orders", OrderPlaced, key=lambda order: order.customer_id, ordered=True)

# Receipts may overtake each other: nothing depends on their order.
payments = Topic("checkout.payments", PaymentTaken)


@dataclass(frozen=True)
class BadLine:
    """A line of the file that is no order."""

    number: int
    problem: str


def read_orders(path: Path, skus: Container[str]) -> Iterator[OrderPlaced | BadLine]:
    """Each line of a JSON Lines file, in the file's order: an order, or what is wrong with it.

    Lines are told apart as bytes, so that one with a broken encoding spoils no other.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line := line.strip():
                order = _read_order(line, skus)
                yield BadLine(number, order) if isinstance(order, str) else order


def _read_order(line: bytes, skus: Container[str]) -> OrderPlaced | str:
    try:
        order = OrderPlaced.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
    unknown = [item.sku for item in order.lines if item.sku not in skus]
    return f"unknown SKU {', '.join(unknown)}" if unknown else order
