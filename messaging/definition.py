"""What the code says of one subscription; `messaging.subscription` makes a plan of it when the app runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from messaging.message import Duration, Endpoint, Message, Middleware, Topic
    from messaging.middleware.retry import RetryPolicy
    from messaging.topology import Start, TopologyMode

OnExpired = Literal["drop", "dead_letter"]
OnExhausted = Literal["dead_letter", "hold_key"]


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

    @property
    def name(self) -> str:
        return f"{self.topic.name}/{self.group}"


@dataclass(slots=True, eq=False, kw_only=True)
class Defaults:
    """What an app says for all its subscriptions."""

    retry: RetryPolicy
    middleware: Sequence[Middleware] = ()
    concurrency: int | None = None
    prefetch: int | None = None
    timeout: Duration | None = None
    idempotent: bool | Callable[[Message], str] = False
