"""Threads in the formats of `azure-openai-proxy inspect`, of the command `azure.share` and of the page."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from azure_openai_proxy.inspection import text as readable_text

from . import document, html, jsonl, plain
from .redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.inspection.threads.store import Threads

__all__ = ["FORMATS", "MEDIA_TYPES", "SHARED", "share", "write"]

FORMATS = ("text", "json", "html", "jsonl", "markdown")
SHARED = ("html", "jsonl", "markdown")
"""Formats for others, of one thread."""
MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
    "html": "text/html; charset=utf-8",
    "jsonl": "application/jsonl",
    "markdown": "text/markdown; charset=utf-8",
}


def share(threads: Threads, format: str, ids: Sequence[str] | None = None, redactor: Redactor | None = None) -> str:
    """Return threads in a format. `ids` None: all threads; `text` then has an overview, not the conversations.

    All texts of the threads are parsed: call it in a thread of its own.

    Raises:
        KeyError: there is no such thread.
    """
    redactor = redactor or Redactor()
    chosen = threads.thread_ids if ids is None else list(ids)
    if format == "json" or (format == "text" and ids is None):
        report = threads.report() if ids is None else {"threads": [threads.thread(id) for id in chosen]}
        report = document.report_of(report, redactor)
        return json.dumps(report, indent=2) + "\n" if format == "json" else readable_text.clean(plain.overview(report))
    if format == "jsonl":
        return jsonl.lines(threads, chosen, redactor)
    found = redactor.again([document.thread_of(threads, id, redactor) for id in chosen])
    return {"text": plain.conversation, "html": html.page, "markdown": plain.markdown}[format](found)


def write(path: str, text: str) -> None:
    """Write a text to a file. A new one is its owner's alone, because it has a conversation; another keeps its mode.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
