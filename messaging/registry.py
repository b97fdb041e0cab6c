"""URL schemes to adapters and stores, by entry point; each is loaded when it is first asked for."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from messaging.errors import ConfigurationError, MissingExtra
from messaging.names import check_namespace
from messaging.urls import ESCAPED

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

    from messaging.adapter import Adapter, AdapterContext
    from messaging.clock import Clock
    from messaging.store import IdempotencyStore

ADAPTERS = "messaging.adapters"
STORES = "messaging.stores"

_EXTRAS = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "kafka": "kafka",
    "sqs": "sqs",
}
_WORDS = "pas|pw|jaas|secret|token|key|cred|auth|sig"
# Each letter as it is, or percent-encoded: a name is decoded before it is read.
_SECRET = re.sub("[a-z]", lambda one: f"(?:{one[0]}|%{ord(one[0]):02x}|%{ord(one[0].upper()):02x})", _WORDS)
_HOSTS = re.compile(r"(?:(?:\[[^\]]*\]|[^:,]*)(?::\d*)?(?:,|$))*")


@cache
def _parameter() -> re.Pattern[str]:
    """A secret goes on to the next parameter: it may have unescaped characters."""
    # Slow to compile, and most programs show no URL that has a parameter.
    return re.compile(
        rf"([?&#;][^=?&#;@]*(?:{_SECRET})[^=?&#;@]*)=.*?(?=[&;][a-z][a-z0-9_.-]*=|$)",
        re.IGNORECASE | re.DOTALL,
    )


def redact(url: str) -> str:
    """The URL without its credentials: for every error, log line and representation that shows one."""
    start = url.find("://")
    start = 0 if start < 0 else start + 3
    end = len(url)
    for mark in "/?#":
        found = url.find(mark, start)
        end = end if found < 0 else min(end, found)
    authority, rest = url[start:end], url[end:]
    shown = _parameter().sub(r"\1=***", rest) if "=" in rest else rest
    if "@" in rest:
        # A password that holds an unescaped / or ? or #: rather hide too much than half of it.
        whole = shown.count("@") == rest.count("@")  # else a parameter's secret has one, too
        authority, shown = "***", shown[shown.rindex("@") :] if whole else ""
    elif "@" in authority:
        user, colon, _ = authority.partition("@")[0].partition(":")
        hosts = authority[authority.rindex("@") :]
        authority = f"{user}:***{hosts}" if colon else f"***{hosts}"
    elif not _HOSTS.fullmatch(authority):
        # No port: a user and a password whose host was forgotten.
        authority, shown = f"{authority.partition(':')[0]}:***", ""
    return url[:start] + authority + shown


def is_secret(option: str) -> bool:
    """Whether an option of this name may hold a credential."""
    return re.search(_SECRET, option, re.IGNORECASE) is not None


def split_namespace(url: str) -> tuple[str, str | None]:
    """The URL without its `?namespace=`, and that namespace: the one option that every broker knows (17).

    Its scheme is in lower case then. Raises ConfigurationError for an illegal name, and for two of them.
    """
    url = with_plain_scheme(url)
    base, question, query = url.partition("?")
    options = query.split("&")
    found = [option for option in options if option.startswith("namespace=")]
    if not question or not found:
        return url, None
    rest = "&".join(option for option in options if option not in found)
    namespace = unquote(found[-1].partition("=")[2])
    if "@" in namespace:  # it may be the end of a password
        raise ConfigurationError(f"the URL's namespace has an @, which no name has; {ESCAPED}")
    if len(found) > 1:
        raise ConfigurationError("the URL has the option 'namespace' twice")
    return f"{base}?{rest}" if rest else base, check_namespace(namespace)


def with_plain_scheme(url: str) -> str:
    """The URL with its scheme in lower case, as adapters and stores read it: no scheme is known by its case."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme.lower()}{mark}{rest}" if mark else url


def scheme_of(url: str) -> str:
    """The scheme, in lower case. Raises ConfigurationError for what is no URL, without showing it in full."""
    scheme, found, _ = url.partition("://")
    if not found or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ConfigurationError("a broker's URL begins with a scheme, as redis://localhost or memory://")
    return scheme.lower()


def adapter_class(url: str) -> type[Adapter]:
    """The adapter of the URL's scheme.

    Raises ConfigurationError for an unknown scheme (naming the known ones) and for an adapter made for
    another version of the SPI, MissingExtra when its broker's library is not installed.
    """
    from messaging.adapter import API_VERSION, Adapter

    found = _load(ADAPTERS, "adapter", url)
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise ConfigurationError(
            f"the entry point of scheme {scheme_of(url)!r} is no messaging.adapter.Adapter"
        )
    if found.api_version != API_VERSION:
        raise ConfigurationError(
            f"{found.__module__}.{found.__qualname__} is made for version {found.api_version} of the SPI, "
            f"and this is version {API_VERSION}: install versions that fit together"
        )
    return found


def adapter_for(url: str, context: AdapterContext) -> Adapter:
    """The adapter of the URL, not yet opened. Raises as `adapter_class`, and for options it does not know."""
    return adapter_class(url).from_url(with_plain_scheme(url), context)


def store_class(url: str) -> type[IdempotencyStore]:
    """The idempotency store of the URL's scheme. Raises as `adapter_class` does."""
    from messaging.store import IdempotencyStore

    found = _load(STORES, "store", url)
    if not (isinstance(found, type) and issubclass(found, IdempotencyStore)):
        raise ConfigurationError(
            f"the entry point of scheme {scheme_of(url)!r} is no messaging.store.IdempotencyStore"
        )
    if "token" not in inspect.signature(found.begin).parameters:
        raise ConfigurationError(
            f"the store of scheme {scheme_of(url)!r} was written for an earlier version of its SPI: its `begin` takes "
            "no `token`. Add it as messaging.store.IdempotencyStore says, or install a release that fits"
        )
    return found


def store_for(url: str, *, clock: Clock) -> IdempotencyStore:
    """The idempotency store of the URL, not yet opened. Raises as `store_class` does."""
    return store_class(url).from_url(with_plain_scheme(url), clock=clock)


def known_schemes(group: str) -> list[str]:
    """The schemes for which something is registered, whether its library is installed or not."""
    return sorted({point.name for point in _registered(group)})


def known_adapters() -> set[str]:
    """What an adapter may be called in the settings, as far as can be told without loading any."""
    points = _registered(ADAPTERS)
    packages = {point.module.partition(".")[0].removeprefix("messaging_") for point in points}
    return packages | {point.name for point in points} | set(_EXTRAS.values())


def _registered(group: str, name: str | None = None) -> EntryPoints:
    from importlib.metadata import entry_points

    return entry_points(group=group) if name is None else entry_points(group=group, name=name)


def _load(group: str, what: str, url: str) -> Any:
    scheme = scheme_of(url)
    points = _registered(group, scheme)
    if not points:
        raise ConfigurationError(_unknown(group, what, scheme))
    point = next(iter(points))
    try:
        return point.load()
    except ImportError as error:
        raise _missing(point, what, scheme, error) from error
    except AttributeError as error:
        raise ConfigurationError(f"the {what} of scheme {scheme!r} cannot be loaded: {error}") from error


def _unknown(group: str, what: str, scheme: str) -> str:
    extra = _extra(scheme)
    known = ", ".join(f"{name}://" for name in known_schemes(group)) or "none"
    advice = (
        f" For {scheme}://, pip install 'messaging-ports[{extra}]'." if extra and group == ADAPTERS else ""
    )
    return f"no {what} for the URL scheme {scheme!r}; known are {known}.{advice}"


def _missing(point: EntryPoint, what: str, scheme: str, error: ImportError) -> ConfigurationError:
    absent = (error.name or "").partition(".")[0]
    if absent in {"messaging", point.module.partition(".")[0]} or not absent:
        return ConfigurationError(f"the {what} of scheme {scheme!r} cannot be loaded: {error}")
    extra = _extra(scheme)
    ours = point.dist is None or point.dist.name == "messaging-ports"
    advice = f"pip install 'messaging-ports[{extra}]'" if ours and extra else f"install {absent}"
    return MissingExtra(f"the {what} for {scheme}:// needs {absent}, which is not installed: {advice}")


def _extra(scheme: str) -> str | None:
    return _EXTRAS.get(scheme) or _EXTRAS.get(scheme.partition("+")[0])
