"""What an annotation asks for: an object or, where its names cannot be seen, a text, both read by the same rules."""

from __future__ import annotations

import ast
import inspect
from contextlib import suppress
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from messaging.message import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def evaluated(function: Callable[..., Any], annotation: Any) -> Any:
    """The annotation as an object; as text where its name cannot be seen from the module or the closure."""
    if not isinstance(annotation, str):
        return annotation
    plain = inspect.unwrap(function)
    names: dict[str, Any] = {}
    if inspect.isfunction(plain):
        names = dict(plain.__globals__)
        for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
            with suppress(ValueError):  # a variable that the enclosing function has not assigned yet
                names[name] = cell.cell_contents
    try:
        return eval(annotation, names)  # noqa: S307  the program's own annotation, as typing.get_type_hints does
    except Exception:
        return annotation


def kinds(annotation: Any) -> Sequence[Any]:
    """What it allows: `Db | None` and `Annotated[Db, ...]` ask for a Db. Of a text: names, without `[Row]`."""
    if isinstance(annotation, str):
        return list(_kinds_of_text(annotation))
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds(get_args(annotation)[0])
    if origin is Union or origin is UnionType:
        return [kind for member in get_args(annotation) for kind in kinds(member)]
    return [annotation]


def _kinds_of_text(text: str) -> Iterator[str]:
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        yield text
    else:
        yield from _kinds_of_expression(expression)


def _kinds_of_expression(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp):  # `A | B`
        yield from _kinds_of_expression(node.left)
        yield from _kinds_of_expression(node.right)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _kinds_of_text(node.value)
    elif isinstance(node, ast.Subscript):
        generic = ast.unparse(node.value)
        arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = _last_name(generic)
        if name in {"Annotated", "Optional", "Union"}:
            for argument in arguments[:1] if name == "Annotated" else arguments:
                yield from _kinds_of_expression(argument)
        else:
            yield generic
    else:
        yield ast.unparse(node)


def is_delivery(kind: Any) -> bool:
    """Whether one of the `kinds` is a Delivery, of whatever payload."""
    if isinstance(kind, str):
        return _last_name(kind) == "Delivery"
    return kind is Delivery or get_origin(kind) is Delivery


def fits(value: object, kind: Any) -> bool:
    """Whether the value is an instance of one of the `kinds`; of a text, by the names of its classes."""
    if isinstance(kind, str):
        return _last_name(kind) in {known.__name__ for known in type(value).__mro__}
    try:
        return isinstance(value, get_origin(kind) or kind)
    except TypeError:
        return False


def shown(annotation: Any) -> str:
    """The annotation as an error says it."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))


def _last_name(dotted: str) -> str:
    return dotted.rpartition(".")[2]
