"""What an annotation asks for, as an object and as a text."""

from typing import Annotated, Generic, Optional, TypeVar, Union

import pytest

from messaging import Delivery
from messaging.annotations import fits, is_delivery, kinds

T = TypeVar("T")


class Db:
    pass


class Pool(Generic[T]):
    pass


@pytest.mark.parametrize(
    ("annotation", "text", "asked"),
    [
        (Db, "Db", ["Db"]),
        (Db, "app.Db", ["Db"]),
        (Db | None, "Db | None", ["Db"]),
        (Optional[Db], "Optional[Db]", ["Db"]),  # noqa: UP045
        (Union[Db, Pool], "typing.Union[Db, Pool]", ["Db", "Pool"]),  # noqa: UP007
        (Annotated[Db, Pool], "Annotated[Db, Pool]", ["Db"]),
        (Optional[Annotated[Db | Pool, 1]], "Annotated['Db | Pool', 1] | None", ["Db", "Pool"]),  # noqa: UP045
        (Pool[int] | None, "Pool[int] | None", ["Pool"]),
    ],
)
def test_a_text_asks_for_what_the_same_object_asks_for(annotation, text, asked):
    def fitting(form):
        return [
            type(value).__name__ for value in (Db(), Pool()) if any(fits(value, one) for one in kinds(form))
        ]

    assert fitting(annotation) == asked
    assert fitting(text) == asked


@pytest.mark.parametrize(
    "annotation", [Delivery, Delivery[int] | None, "Delivery", "messaging.Delivery[Order]"]
)
def test_a_delivery_is_known_whatever_its_payload(annotation):
    assert any(map(is_delivery, kinds(annotation)))
