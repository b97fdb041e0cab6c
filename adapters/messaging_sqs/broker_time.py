"""The service's own time, as its answers tell it: a clock that is wrong by hours makes nothing early or late (5)."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from messaging_sqs.entries import milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence


class BrokerTime:
    """Never ahead of the service's clock, in seconds since the epoch."""

    def __init__(self) -> None:
        self._date = ""
        self._ahead: float | None = None
        """Seconds since the epoch there, less those of the monotonic clock here; None: no answer has told any."""

    def heard(self, answer: dict[str, Any] | None) -> None:
        """Any answer of SQS or SNS: its date has whole seconds, and the first answer of each second is the best."""
        came = time.monotonic()
        headers: dict[str, Any] = (answer or {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
        date = headers.get("date")
        if not isinstance(date, str) or date == self._date:
            return
        try:
            self._ahead = parsedate_to_datetime(date).timestamp() - came
        except ValueError:
            return
        self._date = date

    def now(self) -> float:
        """At most a second behind; this machine's own time as long as no answer has told any."""
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    def handed_over(self, messages: Sequence[dict[str, Any]]) -> float:
        """When these were received, at the earliest: to the millisecond where one came for the first time."""
        first = (milliseconds(one, "ApproximateFirstReceiveTimestamp") for one in messages)
        return max((0.0 if self._ahead is None else self.now(), *first))
