"""The message that every contender carries: JSON, about 1 KiB where nothing else is asked for."""

from __future__ import annotations

import gc
import os
import secrets

from pydantic import BaseModel

SIZE = int(os.environ.get("BENCHMARKS_SIZE", "1024"))
"""Bytes of a message, within a few."""
TEXT = "x" * (SIZE - 54)


class Order(BaseModel):
    number: int
    customer: str
    text: str = TEXT


def order(number: int) -> Order:
    return Order(number=number, customer=f"c{number % 1000}")


def prepared_orders(messages: int) -> list[Order]:
    """So many, made beforehand: as no service has them, they are nothing for the garbage collector to look at."""
    made = [order(number) for number in range(messages)]
    gc.freeze()
    return made


def body(number: int) -> bytes:
    """The same as bytes, for clients that know no types."""
    return order(number).model_dump_json().encode()


def number_of(body: bytes) -> int:
    """What a raw consumer reads: the first field, without validating the rest."""
    return int(body[10 : body.index(b",")])


def fresh(prefix: str) -> str:
    """A name that no round before had."""
    return f"bench-{prefix}-{secrets.token_hex(4)}"
