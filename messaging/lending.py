"""What a package lends to its face: a name is loaded with its first use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lent(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The package's `__getattr__`: who needs only `Topic` does not wait for what runs an app.

    `homes` has each module with the names that it lends to the package; the modules are attributes, too.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        from importlib import import_module

        module = home.get(name)
        try:
            found = import_module(f"{package}.{module or name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        if module is None:
            return found
        value = getattr(found, name)
        setattr(sys.modules[package], name, value)
        return value

    return load
