"""Typed payloads to bytes and back: pydantic between, JSON by default, other formats by content type.

Formats are told by content type, never by looking at the bytes. What decodes is as tolerant as pydantic is;
what encodes is strict: a payload of another type is refused before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from itertools import repeat
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    NamedTuple,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
)

from typing_extensions import TypeForm, TypeVar

from messaging.bulk import AT_ONCE, Bulk
from messaging.errors import ConfigurationError, DecodeError, InvalidMessage
from messaging.fields import check_fields
from messaging.lossy import constants, has_floats, has_untyped, may_be_unreadable, may_lose_floats, nulls
from messaging.unions import check_unions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import TypeAdapter

T = TypeVar("T", default=Any)

JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain"
UTF8_TEXT = "text/plain; charset=utf-8"

# What pydantic says of a value that is of another type than its field, without the value itself: 2.10, and since then.
_UNEXPECTED = re.compile(
    r"Expected `(?P<expected>[^`]*)` "
    r"(?:but got `(?P<got>\w+)` with value|"
    r"- .*?\[(?:field_name='(?P<field>[^']*)', )?input_value=.*?, input_type=(?P<type>\w+)\])",
    re.DOTALL,
)
_BYTES = (bytes, bytearray)
_UTF8 = {"utf-8", "utf8", "us-ascii", "ascii"}

Encode: TypeAlias = Callable[[Any], bytes]
Decode: TypeAlias = Callable[[bytes], Any]


class _Format(NamedTuple):
    encode: Encode
    decode: Decode


_formats: dict[str, _Format] = {}


def register(content_type: str, encode: Encode, decode: Decode) -> None:
    """Teach every codec one more format, or replace it.

    `encode` gets what JSON could hold (dict, list, str, int, float, bool, None) and gives bytes; `decode` is
    its inverse. Both may raise whatever they like: it becomes InvalidMessage or DecodeError. JSON, plain text
    and octets are built in and cannot be replaced.
    """
    essence = parse_content_type(content_type)[0]
    if essence in {JSON, OCTETS, TEXT} or "/" not in essence:
        raise ConfigurationError(f"content type {content_type!r} cannot be registered")
    _formats[essence] = _Format(encode, decode)


@lru_cache(maxsize=256)
def parse_content_type(content_type: str) -> tuple[str, str]:
    """The type without parameters, in lower case, every `+json` as JSON; and the charset, `utf-8` if none."""
    essence, _, parameters = content_type.partition(";")
    essence = essence.strip().lower()
    if essence.endswith("+json") or essence == "text/json":
        essence = JSON
    charset = "utf-8"
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower() or charset
    return essence, charset


class Codec(Generic[T]):
    """Payloads of one type to and from bytes. Raises ConfigurationError for a type that cannot be carried.

    `content_type` is what is written: JSON unless given, octets for bytes. For `Any`, it follows each
    payload: bytes as octets, str as text, the rest as JSON. What is read follows the content type of each
    message.
    """

    __slots__ = (
        "_adapter",
        "_classes",
        "_constants",
        "_doubted",
        "_essence",
        "_exact",
        "_expected",
        "_floats",
        "_from_json",
        "_lossy",
        "_many",
        "_to_json",
        "_unreadable",
        "_untyped",
        "content_type",
        "type",
    )

    def __init__(self, type: TypeForm[T], *, content_type: str | None = None) -> None:
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
        if self._essence == JSON and parse_content_type(self.content_type)[1] not in _UTF8:
            raise ConfigurationError(f"JSON is written in UTF-8, not as {self.content_type!r}")
        if content_type is None and type is Any:
            self._essence = ""
        self._adapter: TypeAdapter[Any] | None = None
        self._classes: tuple[Any, ...] = ()
        self._many: Bulk | None = None
        self._exact: frozenset[Any] = frozenset()
        self._constants: Encode | None = None
        self._doubted = self._floats = self._lossy = self._unreadable = self._untyped = False
        if type is bytes or type is Any:
            return
        self._adapter = _type_adapter(type)
        check_fields(self._adapter.core_schema, self._expected)
        check_unions(self._adapter.core_schema, self._expected)
        self._classes = _classes(type)
        self._exact = frozenset(self._classes)
        self._lossy = may_lose_floats(self._adapter.core_schema)
        self._unreadable = may_be_unreadable(self._adapter.core_schema)
        self._floats = has_floats(self._adapter.core_schema)
        self._untyped = has_untyped(self._adapter.core_schema)
        self._doubted = self._unreadable or self._floats or self._untyped
        self._to_json = self._adapter.serializer.to_json
        self._from_json = self._adapter.validator.validate_json

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """The core schema of the type; None for bytes, and for `Any`."""
        return None if self._adapter is None else self._adapter.core_schema

    def encode(self, payload: T) -> tuple[bytes, str]:
        """The body and its content type. Raises InvalidMessage naming the expected and the actual type."""
        adapter = self._adapter
        if adapter is None:
            return self._encode_untyped(payload)
        if payload.__class__ not in self._exact:
            self._check(adapter, payload)
        try:
            if self._essence == JSON:
                body = self._to_json(payload, by_alias=True, warnings="error")
                if self._doubted:
                    self._check_read(payload, body)
                return body, self.content_type
            plain = adapter.dump_python(payload, mode="json", by_alias=True, warnings="error")
            return _write(self._essence, plain, self.content_type), self.content_type
        except InvalidMessage:
            raise
        except Exception as error:
            raise self._refusal(payload, error) from error

    def encode_all(self, payloads: Sequence[T]) -> list[tuple[bytes, str]]:
        """As `encode` each of these. Many models cost far less than as many calls."""
        bulk = self._bulk()
        if bulk is None:
            return [self.encode(payload) for payload in payloads]
        encoded: list[tuple[bytes, str]] = []
        for start in range(0, len(payloads), AT_ONCE):
            some = payloads[start : start + AT_ONCE]
            bodies = bulk.encode(some)
            if bodies is None:
                encoded += [self.encode(payload) for payload in some]
                continue
            if self._doubted:
                for payload, body in zip(some, bodies, strict=True):
                    self._check_read(payload, body)
            encoded += zip(bodies, repeat(self.content_type))
        return encoded

    def decode(self, body: bytes, content_type: str | None) -> T:
        """The payload. Without a content type, the topic's own is assumed. Raises DecodeError."""
        adapter = self._adapter
        if adapter is None:
            plain: Any = body if self.type is bytes else _read_untyped(body, content_type)
            return plain  # type: ignore[no-any-return]  # without an adapter, T is Any or bytes
        try:
            if content_type is None:
                content_type = self.content_type
            if content_type == JSON == self.content_type:
                return self._from_json(body)  # type: ignore[no-any-return]  # the adapter's type is T
            essence, charset = parse_content_type(content_type)
            if essence == JSON:
                read = body if charset in _UTF8 else body.decode(charset)
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

    def _bulk(self) -> Bulk | None:
        """Made when it is first needed; None for payloads that are not models written as JSON."""
        if self._many is None and self._adapter is not None and self._essence == JSON:
            from pydantic import BaseModel

            # What pydantic reads lazily can be written once only, and the models may have to be written each alone.
            if (
                isinstance(self.type, type)
                and issubclass(self.type, BaseModel)
                and "'generator'" not in repr(self._adapter.core_schema)
            ):
                self._many = Bulk(self.type)
        return self._many

    def _encode_untyped(self, payload: Any) -> tuple[bytes, str]:
        if self.type is bytes:
            if type(payload) is not bytes:
                if not isinstance(payload, _BYTES):
                    raise InvalidMessage(f"expected a payload of type bytes, got {_name(type(payload))}")
                payload = bytes(payload)
            return payload, self.content_type
        essence = self._essence
        content_type = self.content_type
        if not essence:
            if isinstance(payload, _BYTES):
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
                f"a payload of type {_name(type(payload))} is not {content_type}: {_brief(error)}"
            ) from error

    def _check_read(self, payload: Any, body: bytes) -> None:
        """Refuse what nobody could read, and NaN and infinity, which JSON does not have, where they would be None."""
        has_null = b"null" in body
        if has_null and self._untyped:
            self._check_untyped(payload, body)
        if not ((has_null and self._floats) or self._unreadable):
            return
        try:
            read = self._from_json(body)
        except Exception as error:
            raise InvalidMessage(
                f"a payload of type {self._expected} cannot be read again as JSON, where NaN and infinity are null and "
                f"keys are texts: {_brief(error)}"
            ) from error
        if has_null and self._lossy and not _same(read, payload) and self._has_lost(payload, body):
            raise self._lost_floats()

    def _check_untyped(self, payload: Any, body: bytes) -> None:
        """Refuse NaN and infinity where there is no type. Null is mostly None: written once more, it stays null."""
        if self._constants is None:
            assert self._adapter is not None
            self._constants = constants(self._adapter.core_schema)
        named = self._constants(payload)
        if named.count(b"null") < body.count(b"null") and (b"NaN" in named or b"Infinity" in named):
            raise self._lost_floats()

    def _lost_floats(self) -> InvalidMessage:
        return InvalidMessage(
            f"a payload of type {self._expected} has NaN or infinity where None may be: JSON writes them as null, "
            f"and they would be read as None"
        )

    def _has_lost(self, payload: Any, body: bytes) -> bool:
        from pydantic_core import from_json

        assert self._adapter is not None
        plain = self._adapter.dump_python(payload, mode="json", by_alias=True, warnings=False)
        return nulls(from_json(body)) > nulls(plain)

    def _check(self, adapter: TypeAdapter[Any], payload: object) -> None:
        """What is no instance of a class of ours must be what strict validation takes; of a subclass, no field is
        lost.
        """
        if isinstance(payload, self._classes):
            kind = type(payload)
            bases = [one for one in self._classes if isinstance(payload, one)]
            lost = _fields(kind).difference(*map(_fields, bases))
            if lost and not any(map(_writes_itself, bases)):
                raise InvalidMessage(
                    f"expected a payload of type {self._expected}, got {_name(kind)}, a subclass whose own fields "
                    f"would be lost ({', '.join(sorted(lost))}): publish one without them, or give the topic the type "
                    f"that has them"
                )
            return
        try:
            adapter.validate_python(payload, strict=True)
        except Exception as error:
            raise self._refusal(payload, error) from error

    def _refusal(self, payload: object, error: Exception) -> InvalidMessage:
        if isinstance(payload, self._classes) and "invalid utf-8" in str(error):
            return InvalidMessage(
                f"a payload of type {self._expected} has bytes in a field that are no UTF-8, and JSON has only text: "
                f'carry them as base64, by ser_json_bytes="base64" and val_json_bytes="base64" in the model_config of '
                f"a model, or the __pydantic_config__ of a dataclass"
            )
        return InvalidMessage(
            f"expected a payload of type {self._expected}, got {_name(type(payload))}: {_brief(error)}"
        )


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # a comparison of the program's own
        return False


def _write(essence: str, payload: Any, content_type: str) -> bytes:
    """Bytes of what needs no type to be written."""
    if essence == JSON:
        from pydantic_core import to_json

        return to_json(payload)
    if essence == TEXT:
        if not isinstance(payload, str):
            raise InvalidMessage(
                f"expected a payload of type str for {content_type}, got {_name(type(payload))}"
            )
        return payload.encode(parse_content_type(content_type)[1])
    if essence == OCTETS:
        if not isinstance(payload, _BYTES):
            raise InvalidMessage(
                f"expected a payload of type bytes for {content_type}, got {_name(type(payload))}"
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

            return from_json(body if charset in _UTF8 else body.decode(charset))
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
        from pydantic.errors import PydanticSchemaGenerationError

        reason = str(error).partition("\n")[0].removesuffix(".")
        if isinstance(error, PydanticSchemaGenerationError):  # what it advises is for reading only
            reason = (
                f"{reason.partition('. ')[0]}. What can be carried is a dataclass, a pydantic model, a TypedDict, a "
                f"plain value, or bytes that your program writes and reads itself"
            )
        raise ConfigurationError(
            f"pydantic cannot carry payloads of type {_name(type_)}: {reason}"
        ) from error
    return adapter


def _classes(type_: Any) -> tuple[type, ...]:
    """The models and dataclasses among the members of a type: their instances need no validation."""
    type_ = getattr(type_, "__value__", type_)  # a type alias
    origin = get_origin(type_)
    if origin is Annotated:
        return () if _written_as_any(type_) else _classes(get_args(type_)[0])
    if origin is Union or origin is UnionType:
        return tuple(found for member in get_args(type_) for found in _classes(member))
    found: Any = origin or type_
    structured = is_dataclass(found) or hasattr(found, "__pydantic_core_schema__")
    return (found,) if structured and isinstance(found, type) else ()


def _written_as_any(annotated: Any) -> bool:
    """Whether an instance of a subclass is written with its own fields, for readers that know more than this one."""
    from pydantic import SerializeAsAny

    marker = cast("type[Any]", SerializeAsAny)  # a type checker sees an alias
    return any(isinstance(one, marker) for one in get_args(annotated)[1:])


def _fields(kind: type[Any]) -> frozenset[str]:
    """What is written of a model or dataclass."""
    if is_dataclass(kind):
        return frozenset(field.name for field in fields(kind))
    found: Mapping[str, Any] = getattr(kind, "model_fields", {})
    return frozenset(name for name, field in found.items() if not field.exclude)


def _writes_itself(kind: type[Any]) -> bool:
    """Whether a serializer of the author's writes it, who may mean its subclasses, too."""
    decorators = getattr(kind, "__pydantic_decorators__", None)
    return bool(decorators and decorators.model_serializers)


def _name(type_: Any) -> str:
    if get_origin(type_) is Annotated:
        return _name(get_args(type_)[0])
    if get_origin(type_) is None and isinstance(type_, type):
        return type_.__qualname__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(type_)).replace("<locals>.", "")


def _brief(error: Exception) -> str:
    """The reason without the values: they may be private, and they are many."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        found = [one.groupdict() for one in _UNEXPECTED.finditer(str(error))]
        if found:
            return "; ".join(
                f"{one['field'] or 'it'} is no {one['expected']} but {one['got'] or one['type']}"
                for one in found[:3]
            )
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
