"""Log records that a terminal can show: what a client or an upstream wrote into a line must not act on whoever reads it.

mitmproxy logs names as they come (of a SOCKS5 request, of a TLS hello), and so do its errors. Every record is made by Python's record
factory, whoever logs and whatever handles it, so that is where control characters are taken out.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from azure_openai_proxy.formats import quoting

__all__ = ["install", "remove"]


class Record(logging.LogRecord):
    """Control characters are shown as escapes. Lines after the first are indented: none can pass for a record of its own."""

    _trace = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] and not quoting.is_safe(trace := "".join(traceback.format_exception(*self.exc_info))):
            # Formatters write it from the exception itself.
            self._trace, self.exc_info = f"\n{trace.rstrip()}", None

    def getMessage(self) -> str:  # noqa: N802 - its name in logging
        message = super().getMessage() + self._trace
        return message if message.isprintable() else quoting.terminal(message).replace("\n", "\n    ")


def install() -> None:
    """For all loggers, unless somebody else has a factory of their own."""
    if logging.getLogRecordFactory() is logging.LogRecord:
        logging.setLogRecordFactory(Record)


def remove() -> None:
    if logging.getLogRecordFactory() is Record:
        logging.setLogRecordFactory(logging.LogRecord)
