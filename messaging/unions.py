"""Unions of payload types must be told apart on the wire, or pydantic would decode one member as another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from messaging.errors import ConfigurationError
from messaging.fields import STRUCTURES, written_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
COLLECTIONS = {
    "list": "items_schema",
    "set": "items_schema",
    "frozenset": "items_schema",
    "generator": "items_schema",
    "dict": "values_schema",
}
_ARRAYS = {"list", "set", "frozenset", "generator", "tuple", "named-tuple", "call"}
# Of what is neither, all the rest is written as a string, or may be.
_SCALARS = {"int": "number", "float": "number", "bool": "boolean", "none": "null"}


class _Member(NamedTuple):
    kind: str
    name: str
    root: type | None
    """The RootModel that it is the root of: the rest of the wire does not say which."""
    tags: Tags
    discriminated: int | None = None
    """The union whose Discriminator tells it from the other members of that."""


def check_unions(schema: Schema, expected: str) -> None:
    """Raises ConfigurationError where members of a union that look the same in JSON cannot be told apart.

    Told apart are objects with a field of one name that is a Literal of each member's own, and the members of
    a union with a pydantic Discriminator. Two arrays, and a RootModel beside what looks like its root, cannot be.
    `schema` is the core schema of the type, `expected` its name. Looks into collections and RootModels, not into
    other models: the fields of a model are its author's.
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
        elif kind in COLLECTIONS:
            self.visit(schema.get(COLLECTIONS[kind], _ANY))
        elif kind == "tuple":
            for item in cast("Iterable[Schema]", schema["items_schema"]):
                self.visit(item)
        elif kind == "definition-ref":
            if schema["schema_ref"] not in self._visited:
                self._visited.add(schema["schema_ref"])
                self.visit(self._definitions[schema["schema_ref"]])
        elif kind in {"union", "tagged-union"}:
            if kind == "union":
                self._check(schema)
            for choice in choices(schema):
                self.visit(choice)
        elif kind == "model" and schema.get("root_model"):
            self.visit(schema["schema"])

    def _check(self, union: Schema) -> None:
        members = list(self._members(union, None, frozenset()))
        objects = [member for member in members if member.kind == "object"]
        if not (_alone(objects) or _tagged(objects)):
            raise self._refusal(
                objects,
                'give each a field of one name with a Literal of its own, as `kind: Literal["placed"] = "placed"`, '
                "or the union a pydantic Discriminator",
            )
        arrays = [member for member in members if member.kind == "array"]
        if not _alone(arrays):
            raise self._refusal(arrays, "give each a model of its own that has it as a field")
        for kind in {member.kind for member in members} - {"object", "array"}:
            same = [member for member in members if member.kind == kind]
            if len({member.root for member in same}) > 1 and not _alone(same):
                raise self._refusal(same, "give each a model of its own that has it as a field")

    def _refusal(self, members: Iterable[_Member], advice: str) -> ConfigurationError:
        names = ", ".join(member.root.__name__ if member.root else member.name for member in members)
        return ConfigurationError(
            f"the members of the union {self._expected} cannot be told apart ({names}): {advice}"
        )

    def _members(self, schema: Schema, root: type | None, within: frozenset[str]) -> Iterator[_Member]:
        """The members, those of unions within this one included; a nullable one is null, too."""
        kind = schema["type"]
        if kind in _TRANSPARENT:
            if kind == "nullable":
                yield _Member("null", "None", root, {})
            yield from self._members(schema[_TRANSPARENT[kind]], root, within)
        elif kind == "definition-ref":
            ref = schema["schema_ref"]
            if ref not in within:  # a type that is a member of itself
                yield from self._members(self._definitions[ref], root, within | {ref})
        elif kind == "union":
            for choice in choices(schema):
                yield from self._members(choice, root, within)
        elif kind == "tagged-union":
            for choice in choices(schema):
                for member in self._members(choice, root, within):
                    yield member._replace(discriminated=id(schema))
        elif schema.get("root_model"):
            yield from self._members(schema["schema"], root or schema["cls"], within)
        elif kind in STRUCTURES or kind == "dict":
            name = schema["cls"].__name__ if "cls" in schema else "dict" if kind == "dict" else "TypedDict"
            yield _Member("object", name, root, _tags(schema))
        elif kind in _ARRAYS:
            yield _Member("array", schema["cls"].__name__ if "cls" in schema else kind, root, {})
        else:
            yield _Member(_SCALARS.get(kind, "string"), kind, root, {})


def choices(union: Schema) -> list[Schema]:
    """The schemas of its members."""
    if union["type"] == "tagged-union":
        return list(cast("Mapping[str, Schema]", union["choices"]).values())
    choices = cast("Iterable[Schema | tuple[Schema, str]]", union["choices"])
    return [choice[0] if isinstance(choice, tuple) else choice for choice in choices]


def _alone(members: list[_Member]) -> bool:
    """Whether there are no two, or a Discriminator tells them apart."""
    return len(members) < 2 or len({member.discriminated or id(member) for member in members}) == 1


def _tagged(members: list[_Member]) -> bool:
    for tag in members[0].tags:
        values = [value for member in members for value in member.tags.get(tag, ())]
        if all(tag in member.tags for member in members) and len(values) == len(set(values)):
            return True
    return False


def _tags(schema: Schema) -> Tags:
    """The fields of type Literal that are always written, by the name that they are written by."""
    while schema["type"] in {"model", "dataclass"} or schema["type"] in _TRANSPARENT:
        schema = schema["schema"]
    if schema["type"] == "dataclass-args":
        fields = {field["name"]: field for field in cast("Iterable[Schema]", schema["fields"])}
    else:
        fields = dict(cast("Mapping[str, Schema]", schema.get("fields", {})))
    tags: dict[str, list[Any]] = {}
    for name, field in fields.items():
        inner = cast("Schema", field["schema"])
        while inner["type"] in _TRANSPARENT and inner["type"] != "nullable":
            inner = inner[_TRANSPARENT[inner["type"]]]
        written = not field.get("serialization_exclude") and field.get("required", True)
        if inner["type"] == "literal" and written:
            tags[written_name(name, field)] = inner["expected"]
    return tags
