"""What botocore logs at DEBUG: its requests and responses whole, those that carry credentials among them."""

from __future__ import annotations

import logging

_TELLING = ("botocore.auth", "botocore.endpoint", "botocore.parsers")
"""Of its loggers, those that show a request or a response."""
_CREDENTIALS = ("security-token", "sessiontoken", "secretaccesskey", "webidentitytoken", "bearer")
"""What names one there: a header of a request, a parameter or an answer of STS."""


class _Withhold(logging.Filter):
    """Leaves of a record that carries credentials only that there was one."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage().lower()
        if any(name in text for name in _CREDENTIALS):
            record.msg, record.args = "(withheld: what botocore tells here carries credentials)", ()
        return True


_withhold = _Withhold()


def withhold_credentials() -> None:
    """For the whole process, whatever the level of these loggers; a second call is a no-op."""
    for name in _TELLING:
        logging.getLogger(name).addFilter(_withhold)
