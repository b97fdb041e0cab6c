"""Many models of one class to JSON by one call of pydantic.

Understanding `warnings="error"`, which refuses a value of another type, costs pydantic more than writing a model of
1 KiB. Here it costs that once for many: they are written as one text, with a mark between them, and divided there.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel, TypeAdapter

AT_ONCE = 32
"""Models in one text: with more, it is copied more often while it grows, and leaves the caches."""

# Each model is written as the pair of itself and null.
_BEGIN, _BETWEEN, _END = b"[[", b",null],[", b",null]]"


class Bulk:
    """Writes models of this class, and of no other, as its own serializer does."""

    def __init__(self, model: type[BaseModel]) -> None:
        from pydantic import TypeAdapter

        # What a field without a type is written as depends on the configuration of the whole.
        pairs: TypeAdapter[Any] = TypeAdapter(list[tuple[model, None]], config=model.model_config)  # type: ignore[valid-type]
        self._model = model
        self._to_json = pairs.serializer.to_json

    def encode(self, payloads: Sequence[Any]) -> list[bytes] | None:
        """The JSON of each; None where one may have to be refused, or writes the mark itself: try each alone."""
        if {*map(type, payloads)} != {self._model}:
            return None
        try:
            text = self._to_json([*zip(payloads, repeat(None))], by_alias=True, warnings="error")
        except Exception:
            return None
        bodies = text.split(_BETWEEN)
        if len(bodies) != len(payloads):
            return None
        bodies[0] = bodies[0].removeprefix(_BEGIN)
        bodies[-1] = bodies[-1].removesuffix(_END)
        return bodies
