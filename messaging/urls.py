"""What a broker's URL says behind its `?`, read for adapters so that no error shows what may be a password.

A password with an unescaped `?` or `#` ends up where options are expected, or is taken for a port: an error about a
URL names the part that is wrong, and quotes nothing of it but the name of an option.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
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
_HOST = re.compile(r"[^\s\x00-\x1f\x7f\[\]%/\\@:]+")


def check_host(host: str, where: str) -> str:
    """A host's name or address, without the brackets of IPv6. Raises ConfigurationError for what can be none."""
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        if bracketed or ":" in bare:
            IPv6Address(bare)
        elif not _HOST.fullmatch(bare):
            raise ValueError(bare)
        else:
            bare.encode("idna")  # as it is looked up
    except ValueError:  # UnicodeError is one
        raise ConfigurationError(f"{where} has an illegal host; {ESCAPED}") from None
    return bare


def read_query(query: str, known: Collection[str], where: str) -> dict[str, str]:
    """The options of a URL's query.

    Raises ConfigurationError for one that is not in `known`, or that is given twice. It names the option, unless that
    may be a piece of a password: what stands before an unescaped `@`, or is no `name=value`.
    """
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    for name in options:
        if name not in known:
            is_name = "@" not in query and f"{name}=" in query and _NAME.fullmatch(name)
            shown = f"an unknown option {name!r}" if is_name else "an unknown option"
            raise ConfigurationError(f"{where} has {shown}; known are {', '.join(known)}; {ESCAPED}")
    twice = next((name for name in options if sum(name == other for other, _ in given) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"{where} has the option {twice!r} twice")
    return options
