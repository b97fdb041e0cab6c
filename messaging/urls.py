"""What a broker's URL says behind its `?`, read for adapters so that no error shows what may be a password.

A password with an unescaped `?` or `#` ends up where options are expected, or is taken for a port: an error about a
URL names the part that is wrong, and quotes nothing of it but the name of an option.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from messaging.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection

ESCAPED = (
    "in a user or password, # / ? @ : % [ ] and space are written %23 %2F %3F %40 %3A %25 %5B %5D and %20"
)
"""What an error about a URL ends with: an unescaped character is the usual reason."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def read_query(query: str, known: Collection[str], where: str) -> dict[str, str]:
    """The options of a URL's query.

    Raises ConfigurationError for one that is not in `known`. It names the option, unless that may be a piece of a
    password: what stands before an unescaped `@`, or is no `name=value`.
    """
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in known:
            is_name = "@" not in query and f"{name}=" in query and _NAME.fullmatch(name)
            shown = f"an unknown option {name!r}" if is_name else "an unknown option"
            raise ConfigurationError(f"{where} has {shown}; known are {', '.join(known)}; {ESCAPED}")
    return options
