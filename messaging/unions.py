"""Unions of payload types must be told apart on the wire, or pydantic would decode one member as another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from messaging.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Schema: TypeAlias = "Mapping[str, Any]"
Tags: TypeAlias = "Mapping[str, list[Any]]"

_ANY: dict[str, Any] = {"type": "any"}
# Which key of a core schema leads on, for kinds that do not change how their content looks on the wire.
_TRANSPARENT = {
    "definitions": "schema",
    "default": "schema",
    "nullable": "schema",
    "function-before": "schema",
    "function-after": "schema",
    "function-wrap": "schema",
    "json-or-python": "json_schema",
    "lax-or-strict": "lax_schema",
}
_COLLECTIONS = {
    "list": "items_schema",
    "set": "items_schema",
    "frozenset": "items_schema",
    "dict": "values_schema",
}


def check_unions(schema: Schema, expected: str) -> None:
    """Raises ConfigurationError where members of a union that JSON writes as objects cannot be told apart.

    Told apart are members with a field of one name that is a Literal of each member's own, and the members of
    a union with a pydantic Discriminator. `schema` is the core schema of the type, `expected` its name. Looks
    into collections, not into models: the fields of a model are its author's.
    """
    _Check(schema, expected).visit(schema)


class _Check:
    def __init__(self, schema: Schema, expected: str) -> None:
        definitions = cast("Iterable[Schema]", schema.get("definitions", ()))
        self._definitions = {found["ref"]: found for found in definitions}
        self._expected = expected
        self._visited: set[str] = set()

    def visit(self, schema: Schema) -> None:
        kind = schema["type"]
        if kind in _TRANSPARENT:
            self.visit(schema[_TRANSPARENT[kind]])
        elif kind in _COLLECTIONS:
            self.visit(schema.get(_COLLECTIONS[kind], _ANY))
        elif kind == "tuple":
            for item in cast("Iterable[Schema]", schema["items_schema"]):
                self.visit(item)
        elif kind == "definition-ref":
            if schema["schema_ref"] not in self._visited:
                self._visited.add(schema["schema_ref"])
                self.visit(self._definitions[schema["schema_ref"]])
        elif kind == "union":
            self._check(schema)

    def _check(self, union: Schema) -> None:
        members = self._objects(union)
        if len(members) < 2:
            return
        for tag in members[0][1]:
            values = [value for _, tags in members for value in tags.get(tag, ())]
            if all(tag in tags for _, tags in members) and len(values) == len(set(values)):
                return
        names = ", ".join(name for name, _ in members)
        raise ConfigurationError(
            f"the members of the union {self._expected} cannot be told apart ({names}): give each a field of "
            f'one name with a Literal of its own, as `kind: Literal["placed"] = "placed"`, '
            f"or the union a pydantic Discriminator"
        )

    def _objects(self, schema: Schema) -> list[tuple[str, Tags]]:
        """The members that JSON writes as objects, each with its fields of type Literal."""
        kind = schema["type"]
        if kind in _TRANSPARENT:
            return self._objects(schema[_TRANSPARENT[kind]])
        if kind == "definition-ref":
            return self._objects(self._definitions[schema["schema_ref"]])
        if kind == "union":
            choices = cast("Iterable[Schema | tuple[Schema, str]]", schema["choices"])
            schemas = [choice[0] if isinstance(choice, tuple) else choice for choice in choices]
            return [found for member in schemas for found in self._objects(member)]
        if kind == "tagged-union":
            tagged = cast("Mapping[str, Schema]", schema["choices"])
            return [found for member in tagged.values() for found in self._objects(member)]
        if kind in {"model", "dataclass", "typed-dict"}:
            if schema.get("root_model"):
                return self._objects(schema["schema"])
            return [(schema["cls"].__name__ if "cls" in schema else "TypedDict", self._tags(schema))]
        return [("dict", {})] if kind == "dict" else []

    def _tags(self, schema: Schema) -> Tags:
        while schema["type"] in {"model", "dataclass"} or schema["type"] in _TRANSPARENT:
            schema = schema["schema"]
        if schema["type"] == "dataclass-args":
            fields = {field["name"]: field for field in cast("Iterable[Schema]", schema["fields"])}
        else:
            fields = dict(cast("Mapping[str, Schema]", schema.get("fields", {})))
        tags: dict[str, list[Any]] = {}
        for name, field in fields.items():
            inner = cast("Schema", field["schema"])
            while inner["type"] in _TRANSPARENT:
                inner = inner[_TRANSPARENT[inner["type"]]]
            if inner["type"] == "literal":
                tags[name] = inner["expected"]
        return tags
