"""Settings: what code gives, overridden by a TOML file, overridden by the environment; each value knows its
origin.

The file is `MESSAGING_CONFIG`, else `messaging.toml` in the working folder. It mirrors the code: top-level
keys are those of `connect`, `[app]` those of `App`, `[topics."orders"]` those of `Topic`,
`[subscriptions."orders/billing"]` those of `subscribe`, and `[broker.redis]` the options of one broker. `[routes]`
gives topics another broker than `url`.
Variables are `MESSAGING_URL`, `MESSAGING_STORE`, `MESSAGING_NAMESPACE` and `MESSAGING_SOURCE`;
`MESSAGING__SECTION__KEY` for the other fixed keys; and JSON in `MESSAGING__TOPICS`,
`MESSAGING__SUBSCRIPTIONS` and `MESSAGING__ROUTES`. Durations are seconds or ISO 8601 (`PT5M`).

A URL or a store that code names wins over both, and such a URL keeps out their routes: see
docs/decisions/0001-an-explicit-url-wins.md.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from messaging.envelope import check_text
from messaging.errors import ConfigurationError, InvalidMessage
from messaging.names import check_group, check_namespace, check_topic
from messaging.registry import is_secret, redact, scheme_of
from messaging.sources import (
    CODE,
    DEFAULT,
    TOO_DEEP,
    KeyPath,
    Layer,
    code_layer,
    dotted,
    environment_layer,
    file_layer,
    flat,
    merged,
    nearest,
    origins_of,
    too_deep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _no_switch(value: Any) -> Any:
    """What is on or off is no number, though Python and pydantic take it for 1 or 0."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")  # noqa: TRY004  pydantic wants a ValueError
    return value


def _in_seconds(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            value = TypeAdapter(timedelta).validate_python(value)
    return value.total_seconds() if isinstance(value, timedelta) else _no_switch(value)


Seconds: TypeAlias = Annotated[float, BeforeValidator(_in_seconds), Field(ge=0, allow_inf_nan=False)]
Timeout: TypeAlias = Annotated[float, BeforeValidator(_in_seconds), Field(gt=0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, BeforeValidator(_no_switch), Field(ge=1)]


class _Section(BaseModel):
    """Every field may be None: not set here, so that the code's value counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RetrySettings(_Section):
    """The numbers of a retry policy; which errors deserve a retry is the code's to say."""

    attempts: Count | None = None
    delay: Seconds | None = None
    maximum: Seconds | None = None
    multiplier: Annotated[float, BeforeValidator(_no_switch), Field(ge=1, allow_inf_nan=False)] | None = None
    jitter: Annotated[float, BeforeValidator(_no_switch), Field(ge=0, le=1)] | None = None


class AppSettings(_Section):
    """What `App` gives all its subscriptions; a value that `subscribe` itself has is nearer and counts
    more.
    """

    concurrency: Count | None = None
    prefetch: Count | None = None
    timeout: Timeout | None = None
    retry: RetrySettings = RetrySettings()


class SubscriptionSettings(AppSettings):
    """What overrides `subscribe` for one topic and group."""

    ordered: bool | None = None
    idempotent: bool | None = None
    start: Literal["latest", "earliest"] | datetime | None = None
    on_expired: Literal["drop", "dead_letter"] | None = None
    on_exhausted: Literal["dead_letter", "hold_key"] | None = None
    native: str | None = None


class TopicSettings(_Section):
    """What overrides `Topic`."""

    partitions: Count | None = None
    ordered: bool | None = None
    retention: Timeout | None = None
    native: str | None = None


class Settings(BaseSettings):
    """What `connect` can be told. `Settings(...)` is exactly what it is given; `load` adds file and
    environment.
    """

    model_config = SettingsConfigDict(
        env_prefix="MESSAGING__",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    url: str | None = None
    store: str | None = None
    source: str | None = None
    namespace: str | None = None
    topology: Literal["declare", "verify", "off"] = "declare"
    connect_timeout: Timeout = 10.0
    publish_timeout: Timeout = 30.0
    idempotent_publish: bool = False
    """Send again what has an unknown fate, until it is confirmed or the publish's time is over, so that one copy is
    stored. Raises at start where the broker cannot."""
    request_timeout: Timeout = 30.0
    generation_interval: Timeout = 5.0
    """How often a running program looks whether a topic has a new generation; the same in all its programs."""
    drain_timeout: Seconds = 30.0
    """The grace period: how long running handlers may go on when the program ends."""
    app: AppSettings = AppSettings()
    topics: dict[str, TopicSettings] = {}
    subscriptions: dict[str, SubscriptionSettings] = {}
    """By `topic/group`."""
    routes: dict[str, str] = {}
    """By a topic's name, or the beginning of one and `*`: the URL of its broker, or its name in `broker`."""
    broker: dict[str, dict[str, Any]] = {}
    """The adapters' own options, by the adapter's name, or by a name for `routes` with a `url` beside them."""

    _origins: dict[KeyPath, str] = PrivateAttr(default_factory=dict[KeyPath, str])

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` merges the layers itself, so that each value keeps its origin."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str | None) -> str | None:
        return None if source is None else _checked(_plain_text, source)

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, name: str | None) -> str | None:
        return None if name is None else _checked(check_namespace, name)

    @field_validator("topics")
    @classmethod
    def _check_topics(cls, topics: dict[str, TopicSettings]) -> dict[str, TopicSettings]:
        for name in topics:
            _checked(check_topic, name)
        return topics

    @field_validator("routes")
    @classmethod
    def _check_routes(cls, routes: dict[str, str]) -> dict[str, str]:
        for pattern in routes:
            if pattern == "*":
                raise ValueError('a route for every topic is what `url` is for, not "*"')
            _checked(check_topic, pattern.removesuffix("*"))
        return routes

    @field_validator("broker")
    @classmethod
    def _check_brokers(cls, brokers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in brokers.items():
            if too_deep(options):
                raise ValueError(f"what is set for broker {name} is {TOO_DEEP}")
            if "url" in options and not (isinstance(options["url"], str) and "://" in options["url"]):
                raise ValueError(f"the url of broker {name} is no URL")
        return brokers

    @field_validator("subscriptions")
    @classmethod
    def _check_subscriptions(
        cls, subscriptions: dict[str, SubscriptionSettings]
    ) -> dict[str, SubscriptionSettings]:
        for name in subscriptions:
            topic, slash, group = name.partition("/")
            if not slash:
                raise ValueError(f'the key of a subscription is "topic/group", not {name!r}')
            _checked(check_topic, topic)
            _checked(check_group, group)
        return subscriptions

    @classmethod
    def load(cls, **code: Any) -> Settings:
        """Code below file below environment, except for a URL and a store that code names: these win.

        A URL in code also keeps out routes from elsewhere, and `memory://` a store. None is not given. Raises
        ConfigurationError naming the file or the variable, and the nearest known key for an unknown one.
        """
        given = code_layer(code)
        layers = [given, file_layer(cls), environment_layer(cls)]
        for layer in layers:
            layer.check_depth()
        fixed: dict[str, Any] = {key: given.values[key] for key in ("url", "store") if key in given.values}
        if "url" in fixed:
            for layer in layers[1:]:
                layer.values.pop("routes", None)
        if "url" in fixed and "store" not in fixed and scheme_of(str(fixed["url"])) == "memory":
            fixed["store"] = None
        layers.append(Layer(fixed, {(key,): CODE for key in fixed}))
        try:
            settings = cls(**merged(layers))
        except ValidationError as error:
            raise ConfigurationError(_explained(error, origins_of(layers))) from None
        settings._origins = origins_of(layers)
        return settings

    def model_post_init(self, _context: Any, /) -> None:
        """Until `load` says more, what is given is given by code."""
        self._origins = origins_of([Layer(self.model_dump(exclude_unset=True), {(): CODE})])

    @property
    def generation_grace(self) -> float:
        """Seconds that a program takes at most to notice a new generation and have its publishes confirmed."""
        return self.publish_timeout + 2 * self.generation_interval

    def topic(self, name: str) -> TopicSettings:
        """What is set for this topic."""
        return self.topics.get(name) or TopicSettings()

    def subscription(self, topic: str, group: str) -> SubscriptionSettings:
        """What is set for this subscription itself; `app` holds what is set for all."""
        return self.subscriptions.get(f"{topic}/{group}") or SubscriptionSettings()

    def adapter_options(self, name: str) -> dict[str, Any]:
        """The options of `[broker.<name>]`, without the URL that names it for routes."""
        return {key: value for key, value in self.broker.get(name, {}).items() if key != "url"}

    def broker_url(self, name: str) -> str | None:
        """The URL in `[broker.<name>]`, for routes that name it."""
        return self.broker.get(name, {}).get("url")

    def named_brokers(self) -> list[str]:
        """What a route may name."""
        return sorted(name for name, options in self.broker.items() if "url" in options)

    def effective(self) -> dict[str, tuple[Any, str]]:
        """What is in force, by dotted key: the value, secrets redacted, and where it comes from.

        Fixed keys always; of the others, those that are set.
        """
        found: dict[str, tuple[Any, str]] = {}
        for path, value in flat(self.model_dump()).items():
            if (len(path) == 1 or value is not None) and value != {}:
                found[dotted(path)] = (_shown(path, value), self._origins.get(path, DEFAULT))
        return found

    def origins(self) -> dict[str, str]:
        """By dotted key, where each value comes from: `code`, a file, a variable, or `default`."""
        return {key: origin for key, (_, origin) in self.effective().items()}

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{key}={value!r}" for key, (value, origin) in self.effective().items() if origin != DEFAULT
        )
        return f"Settings({shown})"

    __str__ = __repr__


def _checked(check: Callable[[str], str], text: str) -> str:
    """A text's check, as pydantic wants to hear of it."""
    try:
        return check(text)
    except (ConfigurationError, InvalidMessage) as error:
        raise ValueError(str(error)) from None


def _plain_text(text: str) -> str:
    check_text(text, "it")
    return text


def _shown(path: KeyPath, value: Any) -> Any:
    if value is None:
        return None
    if path[0] == "broker" and any(map(is_secret, path[2:])):
        return "***"
    is_url = isinstance(value, str) and (
        path[0] in {"url", "store"} or path[-1] == "url" or any(mark in value for mark in ("://", "@"))
    )
    return redact(value) if is_url else value


def _explained(error: ValidationError, origins: Mapping[KeyPath, str]) -> str:
    """Each problem with its origin, without the values."""
    lines: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        path = tuple(str(step) for step in problem["loc"])
        while len(path) > 1 and not any(leaf[: len(path)] == path for leaf in origins):
            path = path[:-1]  # the last steps name a member of a union
        origin = next((origins[leaf] for leaf in origins if leaf[: len(path)] == path), CODE)
        if problem["type"] == "extra_forbidden":
            known = [dotted((*path[:-1], key)) for key in _known(path[:-1])]
            lines.append(f"{origin}: unknown key {dotted(path)}{nearest(dotted(path), known)}")
        else:
            lines.append(f"{origin}: {dotted(path)}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _known(path: KeyPath) -> list[str]:
    """The keys of the section at this path."""
    section: Any = Settings
    for part in path:
        table = get_origin(section) is dict
        section = get_args(section)[1] if table else section.model_fields[part].annotation
    return sorted(section.model_fields)
