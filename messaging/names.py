"""Names: which ones are portable, and how they become each broker's legal names, injectively (17).

A physical name is built of the parts role, topic, group, partition and generation, in this order, joined by
the rules' separator; absent parts in the middle stay empty, absent ones at the end are left out. The
namespace stands before them, followed by two separators. Within a part, the separator, the escape character
and whatever the broker forbids are written as the escape character and two hexadecimal digits. Thus two
different sets of parts never give one name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_letters, digits

from messaging.errors import ConfigurationError
from messaging.texts import plain

_PORTABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
RESERVED = "messaging."
"""So begin the types of the library's own messages: a topic's name is the type of what is published to it."""
_HASH_DIGITS = 20
_WORD = frozenset(ascii_letters + digits)


def check_topic(name: str) -> str:
    """The name, if it is portable: 1 to 200 of `[A-Za-z0-9._-]`, not starting with `.`, `-` or `messaging.`.

    Raises ConfigurationError.
    """
    name = _check("topic", name)
    if name.startswith(RESERVED):
        raise ConfigurationError(
            f"illegal topic name {name!r}: what begins with {RESERVED} is kept for the library's own messages"
        )
    return name


def check_group(name: str) -> str:
    """The name, if it is portable: 1 to 200 of `[A-Za-z0-9._-]`, not starting with `.` or `-`.

    Raises ConfigurationError.
    """
    return _check("group", name)


def check_namespace(name: str) -> str:
    """The name, if it is portable: 1 to 200 of `[A-Za-z0-9._-]`, not starting with `.` or `-`.

    Raises ConfigurationError.
    """
    return _check("namespace", name)


def _check(what: str, name: object) -> str:
    if isinstance(name, str) and _PORTABLE.fullmatch(name):
        return plain(name)
    shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
    raise ConfigurationError(
        f"illegal {what} name {shown}: a name has 1 to 200 of the characters A-Z a-z 0-9 . _ - "
        f"and starts with a letter, a digit or _"
    )


@dataclass(frozen=True, slots=True)
class NameRules:
    """What a broker allows in a name, in ASCII characters.

    `separator` is reserved for joining parts. `escape` is needed only where a portable name may hold the
    separator or a character that is not in `legal`. `prefix` is put before every name, with a separator of
    its own.
    """

    maximum: int
    separator: str = ":"
    legal: str = ascii_letters + digits + "._-:"
    escape: str = ""
    prefix: str = ""

    def __post_init__(self) -> None:
        marks = self.separator + self.escape
        if len(self.separator) != 1 or len(self.escape) > 1 or len(set(marks)) != len(marks):
            raise ValueError("separator and escape are two different single characters")
        if not _WORD | set(marks) <= set(self.legal):
            raise ValueError("letters, digits, the separator and the escape character must be legal")
        if not self.escape and not set("._-") <= set(self.legal) - {self.separator}:
            raise ValueError("portable names do not fit these rules without an escape character")
        if self.prefix and not set(self.prefix) <= _WORD:
            raise ValueError("the prefix has letters and digits only")
        if self.maximum < len(self.prefix) + _HASH_DIGITS + 8:
            raise ValueError("too short for a name with a hash")


@lru_cache(maxsize=4096)
def physical(
    rules: NameRules,
    role: str,
    *,
    topic: str,
    group: str | None = None,
    partition: int | None = None,
    namespace: str | None = None,
    generation: int = 1,
) -> str:
    """The broker's name for one thing: different things never share one.

    `role` says what it is (letters and digits: `topic`, `queue`, `dead`). Generation 1 adds nothing. A name
    that is too long is cut and ends with a hash of the whole. Raises ConfigurationError for an illegal topic,
    group or namespace.
    """
    if not role or not set(role) <= _WORD:
        raise ValueError(f"a role has letters and digits only, not {role!r}")
    parts = [
        role,
        _escaped(rules, check_topic(topic)),
        "" if group is None else _escaped(rules, check_group(group)),
        "" if partition is None else str(partition),
        "" if generation == 1 else str(generation),
    ]
    while not parts[-1]:
        parts.pop()
    separator = rules.separator
    name = separator.join(parts)
    if namespace is not None:
        # No role is followed by an empty topic: two separators here can only mean a namespace.
        name = f"{_escaped(rules, check_namespace(namespace))}{separator}{separator}{name}"
    if rules.prefix:
        name = f"{rules.prefix}{separator}{name}"
    if len(name) <= rules.maximum:
        return name
    from hashlib import sha256  # few names are that long

    # After three separators an uncut name holds the digits of a generation, never a letter.
    end = f"{separator * 3}h{sha256(name.encode()).hexdigest()[:_HASH_DIGITS]}"
    return name[: rules.maximum - len(end)] + end


def _escaped(rules: NameRules, part: str) -> str:
    allowed = set(rules.legal) - {rules.separator, rules.escape}
    if set(part) <= allowed:
        return part
    return "".join(letter if letter in allowed else f"{rules.escape}{ord(letter):02x}" for letter in part)
