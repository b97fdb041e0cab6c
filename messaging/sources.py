"""Where settings come from: one layer each for code, file and environment, and the name of every value's
origin.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pydantic_settings import EnvSettingsSource, SettingsError, TomlConfigSettingsSource

from messaging.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_settings import BaseSettings

KeyPath: TypeAlias = tuple[str, ...]

CODE = "code"
DEFAULT = "default"
FILE_NAME = "messaging.toml"
FILE_VARIABLE = "MESSAGING_CONFIG"
PREFIX = "MESSAGING__"
SHORT = ("url", "store", "namespace", "source")
"""The keys with a short variable: `MESSAGING_URL` and so on."""
JSON_ONLY = ("topics", "subscriptions", "routes")
"""Sections whose keys are names, which variables cannot spell."""
DEEPEST = 50
"""Levels of tables and lists; no option of an adapter has so many."""
TOO_DEEP = f"nested more than {DEEPEST} deep"


@dataclass(frozen=True, slots=True)
class Layer:
    """Nested values, and by key path where they come from; an origin holds for all that is below its path."""

    values: dict[str, Any]
    origins: dict[KeyPath, str]

    def origin(self, path: KeyPath) -> str:
        """The origin of the value that this layer has at this path."""
        above = (path[:length] for length in range(len(path), -1, -1))
        return next(self.origins[part] for part in above if part in self.origins)

    def check_depth(self) -> None:
        """Raises ConfigurationError with the origin of what is nested so deep that nothing could read it."""
        for key, value in self.values.items():
            if too_deep(value):
                origins = [origin for path, origin in self.origins.items() if not path or path[0] == key]
                raise ConfigurationError(f"{' or '.join(origins)}: {key} is {TOO_DEEP}")


def code_layer(values: Mapping[str, Any]) -> Layer:
    """What the program gives; None is not given."""
    given = {key: value for key, value in values.items() if value is not None}
    return Layer(given, {(): CODE})


def file_layer(settings: type[BaseSettings]) -> Layer:
    """The TOML file, if there is one. Raises ConfigurationError when it is named and absent, or no TOML."""
    named = os.environ.get(FILE_VARIABLE)
    path = Path(named or FILE_NAME)
    try:
        if not path.is_file():
            if named:
                raise ConfigurationError(f"{FILE_VARIABLE} names {named}, where there is no file")
            return Layer({}, {})
        return Layer(dict(TomlConfigSettingsSource(settings, toml_file=path)()), {(): str(path)})
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{named or FILE_NAME} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ConfigurationError(f"{path} is {TOO_DEEP}") from None


def environment_layer(settings: type[BaseSettings]) -> Layer:
    """The variables. Raises ConfigurationError naming one that cannot be read."""
    origins: dict[KeyPath, str] = {}
    for variable in sorted(os.environ):
        _check_short(settings, variable)
        if variable.upper().startswith(PREFIX):
            path = tuple(variable[len(PREFIX) :].lower().split("__"))
            if len(path) > DEEPEST:
                raise ConfigurationError(f"the variable {variable[:80]}... is {TOO_DEEP}")
            origins[path] = f"{variable} (environment)"
            _check_variable(settings, variable, path)
    try:
        values = dict(EnvSettingsSource(settings)())
    except SettingsError as error:
        names = ", ".join(origin.partition(" ")[0] for origin in origins.values() if origin.partition(" ")[0])
        raise ConfigurationError(f"a variable is no JSON ({names}): {error.__cause__ or error}") from error
    except RecursionError:
        names = ", ".join(origin.partition(" ")[0] for origin in origins.values())
        raise ConfigurationError(f"a variable ({names}) is {TOO_DEEP}") from None
    for key in SHORT:
        variable = f"MESSAGING_{key.upper()}"
        if os.environ.get(variable):
            values[key] = os.environ[variable]
            origins[key,] = f"{variable} (environment)"
    return Layer(values, origins)


def too_deep(value: object) -> bool:
    """Whether it has more levels of tables and lists than settings may have. One that holds itself has."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inner(one)]
        if not level:
            return False
    return True


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list | tuple) else ()


def _check_short(settings: type[BaseSettings], variable: str) -> None:
    """Refuse what was surely meant for us and is not read; other programs may have variables that begin as ours do."""
    name = variable.upper().removeprefix("MESSAGING_")
    if name == variable.upper() or name.startswith("_") or name.lower() in SHORT or variable == FILE_VARIABLE:
        return
    if name.lower() in settings.model_fields:
        raise ConfigurationError(f"{variable} is not read: set {PREFIX}{name}")
    from difflib import get_close_matches

    if close := get_close_matches(name, [key.upper() for key in SHORT], n=1, cutoff=0.8):
        raise ConfigurationError(f"unknown variable {variable}; did you mean MESSAGING_{close[0]}?")


def _check_variable(settings: type[BaseSettings], variable: str, path: KeyPath) -> None:
    section = path[0]
    if section in SHORT:
        raise ConfigurationError(f"{variable} is not read: set MESSAGING_{section.upper()}")
    if section in JSON_ONLY and len(path) > 1:
        raise ConfigurationError(
            f"{variable} is not read: a variable cannot spell names; put JSON into {PREFIX}{section.upper()}"
        )
    if section not in settings.model_fields:
        known = sorted(f"{PREFIX}{name.upper()}" for name in settings.model_fields if name not in SHORT)
        raise ConfigurationError(f"unknown variable {variable}{nearest(variable.upper(), known)}")
    if len(path) > 1 and section != "broker":
        value: Any = settings.model_fields[section].annotation
        for part in path[1:]:
            if not hasattr(value, "model_fields"):
                raise ConfigurationError(
                    f"unknown variable {variable}: {part.upper()} is below a single value"
                )
            field = value.model_fields.get(part)
            value = None if field is None else field.annotation


def merged(layers: list[Layer]) -> dict[str, Any]:
    """All layers in one, the later ones on top."""
    values: dict[str, Any] = {}
    for layer in layers:
        _merge(values, layer.values)
    return values


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        known = below.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            copy = dict(cast("dict[str, Any]", known))
            _merge(copy, cast("dict[str, Any]", value))
            below[key] = copy
        else:
            below[key] = value


def origins_of(layers: list[Layer]) -> dict[KeyPath, str]:
    """The origin of each leaf, the later layers on top."""
    return {path: layer.origin(path) for layer in layers for path in flat(layer.values)}


def flat(values: Mapping[str, Any], path: KeyPath = ()) -> dict[KeyPath, Any]:
    """The leaves by their key paths."""
    leaves: dict[KeyPath, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            leaves |= flat(cast("dict[str, Any]", value), (*path, key))
        else:
            leaves[*path, key] = value
    return leaves


def dotted(path: KeyPath) -> str:
    """The path as TOML writes it."""
    bare = (part.replace("_", "").replace("-", "").isalnum() and part.isascii() for part in path)
    return ".".join(part if is_bare else f'"{part}"' for part, is_bare in zip(path, bare, strict=True))


def nearest(key: str, known: list[str]) -> str:
    """A hint at what was meant."""
    from difflib import get_close_matches

    close = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
