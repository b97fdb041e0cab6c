"""Batches for SNS as forms: urllib, which botocore has for that, quotes byte by byte, and botocore asks it twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote_plus

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUOTED = {byte: quote_plus(bytes((byte,))).encode() for byte in range(256)}
_AS_IS = bytes(byte for byte, quoted in _QUOTED.items() if quoted == bytes((byte,)))
_FIRST = (b"%"[0], b"+"[0])
"""Quoted before all others, whose quotes have these."""
_FEW = 24
"""Different bytes to quote: with more, as in other scripts than the Latin one, urllib is as fast."""


def write_form(params: dict[str, Any], **_: object) -> None:
    """For botocore's event `before-call`: a request with the fields of a form gets them written."""
    fields: Any = params["body"]
    if isinstance(fields, dict):
        params["body"] = form(cast("dict[str, object]", fields))


def form(fields: Mapping[str, object]) -> bytes:
    """The fields as `application/x-www-form-urlencoded`."""
    return b"&".join(quoted(name) + b"=" + quoted(str(value)) for name, value in fields.items())


def quoted(text: str) -> bytes:
    """As `quote_plus` does it."""
    written = text.encode()
    special = set(written.translate(None, _AS_IS))
    if len(special) > _FEW:
        return quote_plus(written).encode()
    for byte in (*(one for one in _FIRST if one in special), *special.difference(_FIRST)):
        written = written.replace(bytes((byte,)), _QUOTED[byte])
    return written
