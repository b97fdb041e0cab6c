"""Typed payloads to bytes and back: pydantic between, JSON by default, other formats by content type.

Formats are told by content type, never by looking at the bytes. What decodes is as tolerant as pydantic is; what
encodes is strict: a payload of another type is refused before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from email.message import EmailMessage
from functools import lru_cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
)

from typing_extensions import TypeForm, TypeVar

from messaging.errors import ConfigurationError, DecodeError, InvalidMessage

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T", default=Any)

JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain"
UTF8_TEXT = "text/plain; charset=utf-8"

Encode: TypeAlias = Callable[[Any], bytes]
Decode: TypeAlias = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class _Format:
    encode: Encode
    decode: Decode


_formats: dict[str, _Format] = {}


def register(content_type: str, encode: Encode, decode: Decode) -> None:
    """Teach every codec one more format, or replace it.

    `encode` gets what JSON could hold (dict, list, str, int, float, bool, None) and gives bytes; `decode` is its
    inverse. Both may raise whatever they like: it becomes InvalidMessage or DecodeError. JSON, plain text and
    octets are built in and cannot be replaced.
    """
    essence = parse_content_type(content_type)[0]
    if essence in {JSON, OCTETS, TEXT} or "/" not in essence:
        raise ConfigurationError(f"content type {content_type!r} cannot be registered")
    _formats[essence] = _Format(encode, decode)


@lru_cache(maxsize=256)
def parse_content_type(content_type: str) -> tuple[str, str]:
    """The type without parameters, in lower case, with every `+json` as JSON; and the charset (`utf-8` if none)."""
    essence, _, parameters = content_type.partition(";")
    essence = essence.strip().lower()
    if essence.endswith("+json") or essence == "text/json":
        essence = JSON
    charset = "utf-8"
    if parameters:
        header = EmailMessage()
        try:
            header["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
            charset = (header.get_content_charset() or "utf-8").lower()
        except (
            Exception
        ):  # written by another program; the parser promises nothing for what is no content type
            charset = "utf-8"
    return essence, charset


class Codec(Generic[T]):
    """Payloads of one type to and from bytes. Raises ConfigurationError where the type cannot be carried safely.

    `content_type` is what is written: JSON unless given, octets for bytes. For `Any`, it follows each payload: bytes
    as octets, str as text, the rest as JSON. What is read follows the content type of each message.
    """

    __slots__ = ("_adapter", "_classes", "_essence", "_expected", "_to_json", "content_type", "type")

    def __init__(self, type: TypeForm[T], *, content_type: str | None = None) -> None:  # noqa: A002
        self.type = type
        self.content_type = content_type or (OCTETS if type is bytes else JSON)
        self._essence = parse_content_type(self.content_type)[0]
        self._expected = _name(type)
        known = {JSON, TEXT, OCTETS, *_formats}
        if type is not bytes and self._essence not in known:
            raise ConfigurationError(
                f"no codec for content type {self.content_type!r}; known are {', '.join(sorted(known))}: "
                f"messaging.codec.register() adds others"
            )
        if content_type is None and type is Any:
            self._essence = ""
        self._adapter: TypeAdapter[Any] | None = None
        self._classes: tuple[Any, ...] = ()
        if type is bytes or type is Any:
            return
        self._adapter = _type_adapter(type)
        _Unions(cast("Mapping[str, Any]", self._adapter.core_schema), self._expected)
        self._classes = _classes(type)
        self._to_json = self._adapter.serializer.to_json

    def encode(self, payload: T) -> tuple[bytes, str]:
        """The body and its content type. Raises InvalidMessage naming the expected and the actual type."""
        adapter = self._adapter
        if adapter is None:
            return self._encode_untyped(payload)
        if not isinstance(payload, self._classes):
            self._check(adapter, payload)
        try:
            if self._essence == JSON:
                return self._to_json(payload, warnings="error"), self.content_type
            plain = adapter.dump_python(payload, mode="json", warnings="error")
            return _write(self._essence, plain, self.content_type), self.content_type
        except InvalidMessage:
            raise
        except Exception as error:
            raise InvalidMessage(
                f"a payload of type {_name(payload.__class__)} cannot be encoded as {self._expected}: {error}"
            ) from error

    def decode(self, body: bytes, content_type: str | None) -> T:
        """The payload. Without a content type, the topic's own is assumed. Raises DecodeError."""
        adapter = self._adapter
        if adapter is None:
            return cast("T", body if self.type is bytes else _read_untyped(body, content_type))
        try:
            if content_type is None or content_type == JSON == self.content_type:
                if self._essence == JSON:
                    return cast("T", adapter.validate_json(body))
                content_type = self.content_type
            essence, charset = parse_content_type(content_type)
            if essence == JSON:
                read = body if charset in {"utf-8", "us-ascii"} else body.decode(charset)
                return cast("T", adapter.validate_json(read))
            if essence == TEXT:
                return cast("T", adapter.validate_python(body.decode(charset)))
            if essence == OCTETS and self._essence == OCTETS:
                return cast("T", adapter.validate_python(body))
            known = _formats.get(essence)
            if known is not None:
                return cast("T", adapter.validate_python(known.decode(body)))
        except Exception as error:
            raise DecodeError(f"the body is no {self._expected}: {_brief(error)}") from error
        raise DecodeError(
            f"no codec for content type {content_type!r}, so the body cannot be read as {self._expected}: "
            f"messaging.codec.register() adds one"
        )

    def _encode_untyped(self, payload: Any) -> tuple[bytes, str]:
        if self.type is bytes:
            if not isinstance(payload, bytes | bytearray | memoryview):
                raise InvalidMessage(f"expected a payload of type bytes, got {_name(payload.__class__)}")
            return bytes(payload), self.content_type
        essence = self._essence
        content_type = self.content_type
        if not essence:
            if isinstance(payload, bytes | bytearray | memoryview):
                essence, content_type = OCTETS, OCTETS
            elif isinstance(payload, str):
                essence, content_type = TEXT, UTF8_TEXT
            else:
                essence = JSON
        try:
            return _write(essence, payload, content_type), content_type
        except InvalidMessage:
            raise
        except Exception as error:
            raise InvalidMessage(
                f"a payload of type {_name(payload.__class__)} cannot be encoded as {content_type}: {error}"
            ) from error

    def _check(self, adapter: TypeAdapter[Any], payload: object) -> None:
        """What is no instance of a class of ours must be what strict validation takes; a dict is no model then."""
        try:
            adapter.validate_python(payload, strict=True)
        except Exception as error:
            raise InvalidMessage(
                f"expected a payload of type {self._expected}, got {_name(payload.__class__)}: {_brief(error)}"
            ) from error


def _write(essence: str, payload: Any, content_type: str) -> bytes:
    """Bytes of what needs no type to be written."""
    if essence == JSON:
        from pydantic_core import to_json

        return to_json(payload)
    if essence == TEXT:
        if not isinstance(payload, str):
            raise InvalidMessage(
                f"expected a payload of type str for {content_type}, got {_name(payload.__class__)}"
            )
        return payload.encode(parse_content_type(content_type)[1])
    if essence == OCTETS:
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise InvalidMessage(
                f"expected a payload of type bytes for {content_type}, got {_name(payload.__class__)}"
            )
        return bytes(payload)
    return _formats[essence].encode(payload)


def _read_untyped(body: bytes, content_type: str | None) -> Any:
    """What the content type says; the bytes untouched where it says nothing that we know."""
    if content_type is None:
        return body
    essence, charset = parse_content_type(content_type)
    try:
        if essence == JSON:
            from pydantic_core import from_json

            return from_json(body if charset in {"utf-8", "us-ascii"} else body.decode(charset))
        if essence == TEXT:
            return body.decode(charset)
        known = _formats.get(essence)
        return body if known is None else known.decode(body)
    except Exception as error:
        raise DecodeError(f"the body is no {content_type}: {_brief(error)}") from error


def _type_adapter(type_: Any) -> TypeAdapter[Any]:
    # A program that publishes only bytes never loads pydantic's schema machinery.
    from pydantic import TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(type_)
        if not adapter.pydantic_complete:
            adapter.rebuild(raise_errors=True)
    except Exception as error:
        raise ConfigurationError(f"pydantic cannot carry payloads of type {_name(type_)}: {error}") from error
    return adapter


def _classes(type_: Any) -> tuple[type, ...]:
    """The models and dataclasses among the members of a type: their instances need no validation."""
    type_ = getattr(type_, "__value__", type_)  # a type alias
    origin = get_origin(type_)
    if origin is Annotated:
        return _classes(get_args(type_)[0])
    if origin is Union or origin is UnionType:
        return tuple(found for member in get_args(type_) for found in _classes(member))
    found = origin or type_
    structured = isinstance(found, type) and (
        is_dataclass(found) or hasattr(found, "__pydantic_core_schema__")
    )
    return (found,) if structured else ()


def _name(type_: Any) -> str:
    if get_origin(type_) is None and isinstance(type_, type):
        return type_.__qualname__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(type_)).replace("<locals>.", "")


def _brief(error: Exception) -> str:
    """The reason without the values: they may be private, and they are many."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"[:500]
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(str(step) for step in problem['loc'])}: {problem['msg']}"
        if problem["loc"]
        else problem["msg"]
        for problem in problems[:3]
    ]
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return ("; ".join(shown) + more)[:500]


class _Unions:
    """Looks through a core schema for unions whose members pydantic would decode as each other."""

    _WRAPPERS: ClassVar = {
        "default",
        "nullable",
        "function-before",
        "function-after",
        "function-wrap",
        "list",
        "set",
        "frozenset",
        "generator",
    }

    def __init__(self, schema: Mapping[str, Any], expected: str) -> None:
        self._definitions: dict[str, Any] = {}
        self._expected = expected
        self._seen: set[str] = set()
        if schema["type"] == "definitions":
            self._definitions = {found["ref"]: found for found in schema["definitions"]}
        self._visit(schema)

    def _visit(self, schema: Mapping[str, Any]) -> None:
        """Through containers, not into models: the fields of a model are its author's."""
        kind = schema["type"]
        if kind == "definitions":
            self._visit(schema["schema"])
        elif kind == "definition-ref":
            if schema["schema_ref"] not in self._seen:
                self._seen.add(schema["schema_ref"])
                self._visit(self._definitions[schema["schema_ref"]])
        elif kind == "union":
            self._check(schema)
        elif kind == "tuple":
            for item in schema["items_schema"]:
                self._visit(item)
        elif kind == "dict":
            self._visit(schema.get("values_schema", _ANY))
        elif kind in self._WRAPPERS:
            self._visit(schema.get("schema") or schema.get("items_schema") or _ANY)

    def _check(self, schema: Mapping[str, Any]) -> None:
        members = self._structured(schema)
        if len(members) < 2:
            return
        names = ", ".join(name for name, _ in members)
        common = set.intersection(*(set(tags) for _, tags in members))
        for tag in common:
            values = [value for _, tags in members for value in tags[tag]]
            if len(values) == len(set(values)):
                return
        raise ConfigurationError(
            f"the members of the union {self._expected} cannot be told apart ({names}): give each a field of the same "
            f'name with a Literal of its own, as `kind: Literal["placed"] = "placed"`, or add a pydantic Discriminator'
        )

    def _structured(self, schema: Mapping[str, Any]) -> list[tuple[str, dict[str, frozenset[Any]]]]:
        """The members that JSON writes as objects, each with its fields of type Literal."""
        kind = schema["type"]
        if kind in {"union", "tagged-union"}:
            choices = schema["choices"]
            found: list[tuple[str, dict[str, frozenset[Any]]]] = []
            for choice in choices.values() if isinstance(choices, dict) else choices:
                found += self._structured(choice[0] if isinstance(choice, tuple) else choice)
            return found
        if kind == "definition-ref":
            return self._structured(self._definitions[schema["schema_ref"]])
        if kind in {"model", "dataclass", "typed-dict"}:
            if schema.get("root_model"):
                return self._structured(schema["schema"])
            return [(schema["cls"].__name__ if "cls" in schema else "TypedDict", self._tags(schema))]
        if kind == "dict":
            return [("dict", {})]
        if kind in self._WRAPPERS - {"list", "set", "frozenset", "generator"}:
            return self._structured(schema["schema"])
        return []

    def _tags(self, schema: Mapping[str, Any]) -> dict[str, frozenset[Any]]:
        while "fields" not in schema or schema["type"] in {"model", "dataclass"}:
            schema = schema["schema"]
        fields = schema["fields"]
        named = fields.items() if isinstance(fields, dict) else [(field["name"], field) for field in fields]
        tags: dict[str, frozenset[Any]] = {}
        for name, field in named:
            inner = field["schema"]
            while inner["type"] in self._WRAPPERS and "schema" in inner:
                inner = inner["schema"]
            if inner["type"] == "literal":
                tags[name] = frozenset(inner["expected"])
        return tags


_ANY: dict[str, Any] = {"type": "any"}
