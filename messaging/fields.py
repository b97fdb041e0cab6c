"""What is written of a payload must be what is read of it: pydantic has other names, and none, for both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from messaging.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Schema: TypeAlias = "Mapping[str, Any]"

STRUCTURES = {"model", "dataclass", "typed-dict"}
_FIELDS = {"model-field", "dataclass-field", "typed-dict-field"}
# Validators that may rename and add fields before these are read.
_REWRITES = {"function-before", "function-wrap"}
# Keys of a core schema that hold no schemas of what is on the wire, but perhaps values of the author's.
_NO_SCHEMAS = {"config", "default", "expected", "metadata", "python_schema", "serialization", "strict_schema"}


class _Place(NamedTuple):
    owner: str
    by_name: bool = False
    by_alias: bool = True
    closed: bool = False
    """Whether fields of other names are refused."""
    rewritten: bool = False
    bytes_written: str = "utf8"
    bytes_read: str = "utf8"


def check_fields(schema: Schema, expected: str) -> None:
    """Raises ConfigurationError for a field whose value would be lost or replaced on its way.

    That is one that is written under a name by which it is not read, one that is required and never written, one that
    is computed where nothing else may be read, a `Json`, bytes that are written in another form than they are read, and
    a secret, which pydantic masks. `schema` is the core schema of the type, `expected` its name. Fields that validators
    or serializers of the author's rewrite are the author's.
    """
    _visit(schema, _Place(expected))


def written_name(name: str, field: Schema) -> str:
    """Under which name a field is on the wire."""
    return str(field.get("serialization_alias", name))


def _visit(schema: Schema, place: _Place) -> None:
    kind = schema["type"]
    serializer = schema.get("serialization", {})
    if _masks(serializer):
        raise ConfigurationError(
            f"{place.owner} is a secret, which pydantic writes as asterisks: carry it encrypted, or give the field a "
            f"serializer that shows it"
        )
    if serializer.get("type") == "function-plain":
        return
    if kind in STRUCTURES:
        name = schema["cls"].__name__ if "cls" in schema else place.owner
        place = _configured(place._replace(owner=name), schema.get("config"))
        if serializer.get("type") == "function-wrap":
            place = place._replace(rewritten=True)
    elif kind in _REWRITES:
        place = place._replace(rewritten=True)
    if not place.rewritten:
        _check_read(schema, place)
    for name, child in children(schema):
        if child["type"] in _FIELDS:
            _check(child.get("name", name), child, place)
        elif not (kind == "union" and child["type"] == "json"):  # another member may read what it holds
            _visit(child, place)


def _check_read(schema: Schema, place: _Place) -> None:
    """Refuse what pydantic writes, and reads never or in another form."""
    if computed := place.closed and schema.get("computed_fields"):
        raise ConfigurationError(
            f"{place.owner} forbids extra fields, and its computed field {computed[0]['property_name']!r} is one: what "
            f"is published could be read by nobody; let it ignore them"
        )
    if schema["type"] == "json" and "serialization" not in schema:
        raise ConfigurationError(
            f"{place.owner} is a Json, which pydantic reads as text and writes as what that holds: what is published "
            f"could be read by nobody; give it the type of what it holds"
        )
    if (
        schema["type"] == "bytes"
        and place.bytes_written != place.bytes_read
        and "serialization" not in schema
    ):
        raise ConfigurationError(
            f"{place.owner} is bytes, which are written as {place.bytes_written} and read as {place.bytes_read}: give "
            f"ser_json_bytes and val_json_bytes of the configuration one value"
        )


def _configured(place: _Place, config: Schema | None) -> _Place:
    if config is None:
        return place
    return place._replace(
        by_name=bool(config.get("validate_by_name", config.get("populate_by_name", False))),
        by_alias=config.get("validate_by_alias") is not False,
        closed=config.get("extra_fields_behavior") == "forbid",
        bytes_written=config.get("ser_json_bytes", "utf8"),
        bytes_read=config.get("val_json_bytes", "utf8"),
    )


def _check(name: str, field: Schema, place: _Place) -> None:
    inner = cast("Schema", field["schema"])
    if field.get("serialization_exclude") is True:
        required = inner["type"] != "default" and field.get("required", True)
        if required and not place.rewritten:
            raise ConfigurationError(
                f"the field {name!r} of {place.owner} is required and excluded: what is published could be read by "
                f"nobody; give it a default"
            )
        return
    if field.get("init_only"):
        if inner["type"] != "default" and not place.rewritten:
            raise ConfigurationError(
                f"the field {name!r} of {place.owner} is an InitVar, which is required and never written: what is "
                f"published could be read by nobody; give it a default"
            )
        return
    if field.get("init") is False and place.closed and not place.rewritten:
        raise ConfigurationError(
            f"{place.owner} forbids extra fields, and its field {name!r}, which is no argument, is one: what is "
            f"published could be read by nobody; let it ignore them"
        )
    written, read = written_name(name, field), _read_names(name, field, place)
    if written not in read and not place.rewritten:
        known = " or ".join(map(repr, read)) or "no name"
        raise ConfigurationError(
            f"the field {name!r} of {place.owner} is written as {written!r} and read as {known}: give it one alias "
            f"for both, or allow to read it by the other"
        )
    _visit(inner, place._replace(owner=f"the field {name!r} of {place.owner}", rewritten=False))


def _read_names(name: str, field: Schema, place: _Place) -> list[str]:
    alias = field.get("validation_alias")
    if alias is None:
        return [name]
    paths: list[Any] = [[alias]] if isinstance(alias, str) else alias
    if paths and not isinstance(paths[0], list):
        paths = [paths]
    names = [str(path[0]) for path in paths if len(path) == 1] if place.by_alias else []
    return [*names, name] if place.by_name else names


def _masks(serializer: Schema) -> bool:
    function = serializer.get("function")
    return getattr(function, "__module__", "") == "pydantic.types" and "_secret" in getattr(
        function, "__name__", ""
    )


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas in this one, with the name or tag under which each is there."""
    for key, value in schema.items():
        if key in _NO_SCHEMAS:
            continue
        found: list[tuple[str, Any]] = [(key, value)]
        if isinstance(value, list):
            found = [(key, one) for one in cast("Iterable[Any]", value)]
        elif isinstance(value, dict) and not isinstance(cast("Schema", value).get("type"), str):
            found = list(cast("dict[str, Any]", value).items())
        for name, one in found:
            child: Any = cast("tuple[Any, str]", one)[0] if isinstance(one, tuple) else one
            if isinstance(child, dict) and isinstance(cast("Schema", child).get("type"), str):
                yield name, cast("Schema", child)
