"""The options of a memory URL: `memory://name?lease=30&max_message_bytes=1048576&history=1000`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from messaging.errors import ConfigurationError
from messaging.urls import read_query

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """What a memory adapter can be told."""

    name: str = ""
    """The broker's name; empty for one that is private to the adapter."""
    lease: float = 30.0
    """Seconds for which a delivery belongs to the member that received it, and bound of a hand-over."""
    max_message_bytes: int = 1024 * 1024
    """Body, headers, key and attributes together."""
    history: int | None = 1000
    """Handled messages kept per partition for groups that begin later; None (`history=none`) keeps all."""

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any]) -> MemorySettings:
        """The URL's query parameters come before `options`. Raises ConfigurationError naming the option."""
        name, query = read_name(
            url, "a memory URL is memory:// or memory://name, with options as ?option=value"
        )
        known = sorted({field.name for field in fields(cls)} - {"name"})
        for option in options:
            if option not in known:
                raise ConfigurationError(
                    f"unknown option {option!r} of the memory broker; it knows {', '.join(known)}"
                )
        values: dict[str, Any] = {**options, **read_query(query, known, "the memory URL")}
        settings: dict[str, Any] = {"name": name}
        if "lease" in values:
            settings["lease"] = _number("lease", values["lease"])
        if "max_message_bytes" in values:
            settings["max_message_bytes"] = _whole("max_message_bytes", values["max_message_bytes"], least=1)
        if "history" in values:
            value = values["history"]
            unbounded = value is None or str(value).lower() == "none"
            settings["history"] = None if unbounded else _whole("history", value, least=0)
        return cls(**settings)


def read_name(url: str, form: str) -> tuple[str, str]:
    """The name and the query. Raises ConfigurationError that tells the `form`: there is no user, password or port."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(form) from None
    illegal = parts.path not in ("", "/") or parts.fragment or any(mark in parts.netloc for mark in "@:")
    if parts.scheme != "memory" or illegal:
        raise ConfigurationError(form)
    return parts.netloc, parts.query


def _number(option: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not isfinite(number) or number <= 0:
        raise ConfigurationError(f"option {option!r} is a number of seconds above 0")
    return number


def _whole(option: str, value: object, *, least: int) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise ConfigurationError(f"option {option!r} is a whole number from {least}")
    return number
