"""Sharing of a thread from the page: a preview, and the file, both without secrets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.inspection.sharing import guarded, redact
from azure_openai_proxy.inspection.sharing import share as formats

from .server import SHARED_POLICY, BadRequest, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_openai_proxy.config.settings import Settings

    from .index import Index
    from .server import Query

__all__ = ["Shares"]

LONGEST_PREVIEW = 200_000
"""Characters of a preview."""
LONGEST_PATTERNS = 2_000
_ENDINGS = {"html": "html", "jsonl": "jsonl", "markdown": "md"}


class Shares:
    def __init__(self, index: Index, settings: Callable[[], Settings]) -> None:
        self._index, self._settings = index, settings

    async def preview(self, query: Query) -> dict[str, Any]:
        """The beginning of the file, and how many texts were removed from it, by kind."""
        text, removed = await self._text(query)
        return {"text": text[:LONGEST_PREVIEW], "more": len(text) > LONGEST_PREVIEW, "removed": removed}

    async def share(self, query: Query) -> Reply:
        """The file, to be saved, or to be shown in a frame in which nothing may run."""
        text, _ = await self._text(query)
        format = query["format"]
        head = {
            "Cache-Control": "no-store",
            "Content-Type": formats.MEDIA_TYPES[format],
            "Content-Security-Policy": SHARED_POLICY,
            "X-Frame-Options": "SAMEORIGIN",
        }
        if query.get("download"):
            head["Content-Disposition"] = f'attachment; filename="thread.{_ENDINGS[format]}"'
        return Reply(text.encode("utf-8", "replace"), 200, head)

    async def _text(self, query: Query) -> tuple[str, dict[str, int]]:
        await self._index.ready()
        id, format, patterns = query.get("id", ""), query.get("format", ""), query.get("patterns", "")
        if format not in formats.SHARED:
            raise BadRequest("format must be html, jsonl or markdown.")
        if id not in self._index.store.thread_ids:
            raise BadRequest("There is no such thread. It may have been removed from the list of flows.", 404)
        if len(patterns) > LONGEST_PATTERNS:
            raise BadRequest("The patterns are too long.")
        lines = [line.strip() for line in patterns.splitlines()]
        try:
            choice = redact.parse([text for text in (query.get("redact", ""), *lines) if text])
        except redact.BadPattern as error:
            raise BadRequest(str(error)) from None
        try:
            return await asyncio.to_thread(self._shared, id, format, choice)
        except guarded.TooSlow:
            raise BadRequest("The search of the patterns takes too long.") from None

    def _shared(self, id: str, format: str, choice: redact.Choice) -> tuple[str, dict[str, int]]:
        with guarded.guarded(choice) as bounded:
            redactor = redact.Redactor(bounded, self._settings().tokens)
            return formats.share(self._index.store, format, [id], redactor), dict(redactor.removed)
