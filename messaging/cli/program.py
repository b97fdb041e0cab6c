"""What is said on the command line: the user's program, by its name, and numbers."""

from __future__ import annotations

import re
import sys
import sysconfig
from argparse import ArgumentTypeError
from importlib import import_module
from pathlib import Path
from traceback import extract_tb

from messaging.app import App
from messaging.errors import ConfigurationError
from messaging.registry import redact


def number_above_0(text: str) -> int:
    """For argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


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

    None when the module has no such attribute. Raises ConfigurationError when there is no such module, and for
    whatever the module's code raises, with the line: the program is at fault then, not this command.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute) or module.startswith("."):
        raise ConfigurationError(f"{what} is named as module:attribute, for instance {example}, not {name!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part, None)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{name}: there is no module {error.name}") from error
    except (Exception, SystemExit) as error:  # a module that exits, even with 0, gives no app
        raise ConfigurationError(f"{name} cannot be loaded: {_told(error)}") from error
    return found


def _told(error: BaseException) -> str:
    """The error and the line of the program that raised it, or called what did."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    paths = sysconfig.get_paths()
    libraries = tuple(paths[one] for one in ("stdlib", "platstdlib", "purelib", "platlib"))
    ours = str(Path(__file__).parents[1])
    # A program often says which URL it could not use, and that may hold a password.
    text = re.sub(r"\S+://\S+", lambda url: redact(url[0]), str(error))
    told = f"{type(error).__name__}: {text}".removesuffix(": ")
    for frame in reversed(extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", ours, *libraries)):
            return f"{told} ({frame.filename}, line {frame.lineno})"
    return told
