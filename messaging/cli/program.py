"""The user's program, as the command line names it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from messaging.app import App
from messaging.errors import ConfigurationError


def load_app(name: str) -> App:
    """The App that `module:attribute` names; see `load`."""
    found = load(name, "an app", "shop.main:app")
    if found is None:
        module, _, attribute = name.partition(":")
        raise ConfigurationError(f"{name}: module {module} has no {attribute}")
    if not isinstance(found, App):
        raise ConfigurationError(f"{name} is no messaging.App but {type(found).__name__}")
    return found


def load(name: str, what: str, example: str) -> object:
    """What `module:attribute` names, modules of the working folder included. Runs the module's code.

    None when the module has no such attribute. Raises ConfigurationError when there is no such module.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute) or module.startswith("."):
        raise ConfigurationError(f"{what} is named as module:attribute, for instance {example}, not {name!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{name}: there is no module {error.name}") from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    return found
