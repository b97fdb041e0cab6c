"""A handler whose annotation says another payload than its topic carries: told before it fails for each message.

Refused is only what cannot be right. Whatever may be another's doing is taken: middleware and decorators may hand on
something else than came, a protocol or a TypedDict may fit, and a name that is looked up here may be another's.
"""

from __future__ import annotations

import inspect
from itertools import chain
from typing import TYPE_CHECKING, Any, get_origin

from typing_extensions import is_typeddict

from messaging.annotations import evaluated, kinds
from messaging.errors import ConfigurationError
from messaging.message import Delivery
from messaging.parameters import name_of
from messaging.unions import choices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from messaging.definition import Definition

_PLAIN = {kind.__name__: kind for kind in (str, int, float, bool, bytes, dict, list)}
# What type checkers take for another (PEP 484).
_PROMOTED: dict[type, tuple[type, ...]] = {
    int: (float, complex),
    float: (complex,),
    bytes: (bytearray, memoryview),
}


def check_payload(definition: Definition) -> None:
    """Raises ConfigurationError where no class that the annotation allows has to do with one that the topic carries."""
    codec = definition.topic.codec
    carried = (bytes,) if codec.type is bytes else () if codec.schema is None else _made(codec.schema)
    if not carried:
        return
    allowed = _annotated(definition.function)
    if not allowed or any(_fits(one, kind) for one in carried for kind in allowed):
        return
    carrier = "topic" if definition.endpoint is None else "endpoint"
    raise ConfigurationError(
        f"handler {name_of(definition.function)} of {definition.name} takes a {_shown(allowed)}, and the {carrier} "
        f"carries {_shown(carried)}: correct the annotation, or the type of the {carrier}"
    )


def _made(schema: Mapping[str, Any]) -> tuple[type, ...]:
    """The classes of what pydantic makes by this schema; none where validators may make something else."""
    kind = schema["type"]
    if kind == "definitions":
        return _made(schema["schema"])
    if kind == "nullable":
        inner = _made(schema["schema"])
        return (*inner, type(None)) if inner else ()
    if kind in {"union", "tagged-union"}:
        members = [_made(choice) for choice in choices(schema)]
        return tuple(chain.from_iterable(members)) if all(members) else ()
    if kind in {"model", "dataclass"}:
        return (schema["cls"],)
    return (_PLAIN[kind],) if kind in _PLAIN else ()


def _annotated(function: Callable[..., Any]) -> tuple[type, ...]:
    """The classes that the payload's annotation allows; none where it may be anything else."""
    plain = getattr(function, "__func__", function)
    if not inspect.isfunction(plain) or hasattr(plain, "__wrapped__") or hasattr(plain, "__signature__"):
        return ()
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except Exception:  # an annotation that cannot be evaluated, as of Python 3.14
        return ()
    annotation = first.annotation
    if annotation is first.empty or first.kind not in {first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD}:
        return ()
    if isinstance(annotation, str) and "." in plain.__qualname__:
        return ()  # a class of this name in the module need not be the one of the function or class around it
    allowed = [_bare(kind) for kind in kinds(evaluated(function, annotation))]
    return tuple(allowed) if all(map(_is_plain, allowed)) else ()


def _bare(kind: Any) -> Any:
    """`Delivery[Order]` is a Delivery: a new user's mistake, who wants the message with its payload."""
    return Delivery if get_origin(kind) is Delivery else kind


def _is_plain(kind: object) -> bool:
    return (
        isinstance(kind, type)
        and not is_typeddict(kind)
        and not getattr(kind, "_is_protocol", False)
        and kind.__module__ != "typing"
    )


def _fits(carried: type, kind: type) -> bool:
    try:
        related = issubclass(carried, kind) or issubclass(kind, carried)
    except Exception:  # of a metaclass
        return True
    return related or kind in _PROMOTED.get(carried, ())


def _shown(classes: tuple[type, ...]) -> str:
    return " | ".join(dict.fromkeys(one.__qualname__ for one in classes))
