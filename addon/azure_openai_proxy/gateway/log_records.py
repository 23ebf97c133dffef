"""Log records without control characters, which a client or an upstream could use to manipulate the terminal.

mitmproxy logs names from SOCKS5 requests and TLS hellos unescaped, also in its errors. Python's record factory creates the records of all
loggers for all handlers, so control characters are escaped there.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from azure_openai_proxy.formats import quoting

__all__ = ["install", "remove"]


class Record(logging.LogRecord):
    """Escapes control characters, and indents all lines but the first so that none can look like a separate record."""

    _trace = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] and not quoting.is_safe(trace := "".join(traceback.format_exception(*self.exc_info))):
            # Formatters would format the unescaped exception.
            self._trace, self.exc_info = f"\n{trace.rstrip()}", None

    def getMessage(self) -> str:  # noqa: N802 - overrides logging's method
        message = super().getMessage() + self._trace
        return message if message.isprintable() else quoting.terminal(message).replace("\n", "\n    ")


def install() -> None:
    """Install the record factory for all loggers, unless another one is installed."""
    if logging.getLogRecordFactory() is logging.LogRecord:
        logging.setLogRecordFactory(Record)


def remove() -> None:
    if logging.getLogRecordFactory() is Record:
        logging.setLogRecordFactory(logging.LogRecord)
