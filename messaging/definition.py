"""What the code says of one subscription; `messaging.subscription` makes a plan of it when the app runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from inspect import isclass
from typing import TYPE_CHECKING, Any, get_args

from messaging.errors import ConfigurationError
from messaging.middleware.expiry import OnExpired
from messaging.middleware.retry import OnExhausted, RetryPolicy
from messaging.topology import TopologyMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.message import Duration, Endpoint, Message, Middleware, Topic
    from messaging.topology import Start


@dataclass(slots=True, eq=False, kw_only=True)
class Definition:
    """What the code says. None where it leaves a choice to the app, the settings or the default."""

    app: str
    topic: Topic[Any]
    group: str
    function: Callable[..., Any]
    endpoint: Endpoint[Any, Any] | None = None
    concurrency: int | None = None
    prefetch: int | None = None
    ordered: bool | None = None
    retry: RetryPolicy | None = None
    timeout: Duration | None = None
    idempotent: bool | Callable[[Message], str] | None = None
    start: Start | None = None
    on_expired: OnExpired | None = None
    on_exhausted: OnExhausted | None = None
    middleware: Sequence[Middleware] = ()
    native: str | None = None
    topology: TopologyMode | None = None

    def __post_init__(self) -> None:
        if self.retry is not None:
            check_kind(self.retry, RetryPolicy, f"retry of {self.name} takes a RetryPolicy")
        _check_handler(self.function, self.name)
        self.middleware = _checked(self.middleware, self.name)
        for name, allowed in (
            ("on_expired", OnExpired),
            ("on_exhausted", OnExhausted),
            ("topology", TopologyMode),
        ):
            _check_choice(name, getattr(self, name), get_args(allowed), self.name)

    @property
    def name(self) -> str:
        return f"{self.topic.name}/{self.group}"


@dataclass(slots=True, eq=False, kw_only=True)
class Defaults:
    """What an app says for all its subscriptions."""

    app: str
    retry: RetryPolicy
    middleware: Sequence[Middleware] = ()
    concurrency: int | None = None
    prefetch: int | None = None
    timeout: Duration | None = None
    idempotent: bool | Callable[[Message], str] = False

    def __post_init__(self) -> None:
        check_kind(self.retry, RetryPolicy, f"retry of app {self.app} takes a RetryPolicy")
        self.middleware = _checked(self.middleware, f"app {self.app}")


# Whoever has no type checker is told here; what passed would retry for ever, or end the app at its start.


def check_kind(given: object, kind: type, told: str) -> None:
    """Raises ConfigurationError with this text, and what was given, unless it is of this kind."""
    if not isinstance(given, kind):
        raise ConfigurationError(f"{told}, not {given!r}")


def _checked(given: Sequence[Middleware], of: str) -> Sequence[Middleware]:
    """The middleware as it was given. Raises ConfigurationError unless each can be called."""
    if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  what untyped code passes
        raise ConfigurationError(f"middleware of {of} takes a list of functions, not {given!r}")
    kept = tuple(given)
    for one in kept:
        if not callable(one):
            raise ConfigurationError(f"middleware of {of} holds {one!r}, which is no function")
    return kept


def _check_handler(given: object, of: str) -> None:
    if isclass(given):  # calling it would make an object and handle nothing
        raise ConfigurationError(
            f"the handler of {of} is the class {given.__qualname__}: it takes a function, a method of an object, or an "
            f"object that can be called"
        )
    if not callable(given):
        raise ConfigurationError(f"the handler of {of} is {given!r}, which is no function")


def _check_choice(name: str, given: object, allowed: Sequence[str], of: str) -> None:
    if given is not None and given not in allowed:
        *first, last = (f'"{one}"' for one in allowed)
        raise ConfigurationError(f"{name}={given!r} of {of}: it takes {', '.join(first)} or {last}")
