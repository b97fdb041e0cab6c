"""Which types have values that JSON cannot carry: what is written of such a type is read again before it is sent."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from messaging.fields import children
from messaging.unions import COLLECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic_core import CoreSchema

Schema: TypeAlias = "Mapping[str, Any]"

# What leads on to the same value.
_INNER = ("default", "nullable", "function-before", "function-after", "function-wrap")
# Keys of which some, or all, are written as a text that is read as no such key.
_KEYS = {"nullable", "tuple", "none", "list", "frozenset", "model", "dataclass"}


def has_floats(schema: Schema) -> bool:
    """Whether there may be NaN or infinity, which JSON writes as null."""
    return _any(schema, lambda one: one["type"] == "float")


def may_lose_floats(schema: Schema) -> bool:
    """Whether such a null may be read as None, so that nobody is told."""
    return _any(schema, lambda one: one["type"] == "nullable" and _is_number(one["schema"]))


def may_be_unreadable(schema: Schema) -> bool:
    """Whether there are keys, or members of an Enum, that may be read no more as the text that is written of them."""
    return _any(schema, _is_odd)


def has_untyped(schema: Schema) -> bool:
    """Whether there may be values without a type, in which NaN and infinity are not looked for as in a float."""
    return _any(schema, _is_untyped)


def constants(schema: CoreSchema) -> Callable[[Any], bytes]:
    """Writes as the type does, but NaN and infinity where no type is by their names."""
    from pydantic_core import CoreConfig, SchemaSerializer

    serializer = SchemaSerializer(schema, CoreConfig(ser_json_inf_nan="constants"))
    return partial(serializer.to_json, by_alias=True, warnings=False)


def nulls(value: object) -> int:
    """How often there is None, however deep."""
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        inner = cast("list[object]", value)
    return (value is None) + sum(map(nulls, inner))


def _any(schema: Schema, judge: Callable[[Schema], bool]) -> bool:
    return judge(schema) or any(_any(child, judge) for _, child in children(schema))


def _is_number(schema: Schema) -> bool:
    """Whether it is a float, or may be: a type that holds itself is looked up nowhere."""
    while schema["type"] in _INNER:
        schema = schema["schema"]
    return schema["type"] in {
        "float",
        "union",
        "tagged-union",
        "definition-ref",
        "lax-or-strict",
        "json-or-python",
    }


def _is_untyped(schema: Schema) -> bool:
    kind = schema["type"]
    if schema.get("config", {}).get("extra_fields_behavior") == "allow":
        return True
    return kind == "any" or (kind in COLLECTIONS and COLLECTIONS[kind] not in schema)


def _is_odd(schema: Schema) -> bool:
    if schema["type"] == "literal":
        return _have_no_text(schema["expected"])
    if schema["type"] != "dict" or "keys_schema" not in schema:
        return False
    keys = cast("Schema", schema["keys_schema"])
    while keys["type"] in _INNER and keys["type"] != "nullable":
        keys = keys["schema"]
    if keys["type"] == "enum":
        return _have_no_text(keys["members"])
    return keys["type"] in _KEYS


def _have_no_text(values: Iterable[object]) -> bool:
    return any(isinstance(one, Enum) and not isinstance(one.value, str) for one in values)
