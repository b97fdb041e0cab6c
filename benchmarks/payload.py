"""The message that every contender carries: about 1 KiB of JSON."""

from __future__ import annotations

import secrets

from pydantic import BaseModel

TEXT = "x" * 970


class Order(BaseModel):
    number: int
    customer: str
    text: str = TEXT


def order(number: int) -> Order:
    return Order(number=number, customer=f"c{number % 1000}")


def body(number: int) -> bytes:
    """The same as bytes, for clients that know no types."""
    return order(number).model_dump_json().encode()


def number_of(body: bytes) -> int:
    """What a raw consumer reads: the first field, without validating the rest."""
    return int(body[10 : body.index(b",")])


def fresh(prefix: str) -> str:
    """A name that no round before had."""
    return f"bench-{prefix}-{secrets.token_hex(4)}"
