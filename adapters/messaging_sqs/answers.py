"""Answers that are not the service's, such as the page of a gateway that wants a login, with status 200.

botocore reads JSON that it cannot parse as an answer without a field: of a receive, as an empty queue.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_parsers: Any = import_module("botocore.parsers")

CHECK = "messaging-answers"
"""What `check` is registered as: once with each client."""
_GOOD = 300
_SHOWN = 200


def check(operation_model: Any, response_dict: dict[str, Any], **_: object) -> None:
    """For botocore's event `before-parse.sqs`. Raises ResponseParserError: what the service did is unknown.

    Only the ends are looked at: a page has others, and so has, nearly always, what was cut off.
    """
    body: bytes = response_dict["body"]
    told = body.lstrip().startswith(b"{") and body.rstrip().endswith(b"}")
    nothing_to_tell = operation_model.output_shape is None and not body.strip()
    if response_dict["status_code"] < _GOOD and not (told or nothing_to_tell):
        raise _parsers.ResponseParserError(f"not an answer of SQS: {body[:_SHOWN]!r}")
