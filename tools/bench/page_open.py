"""A script for mitmproxy's `-s`, after the addon: a person has the inspector's page open, to measure its cost."""

from __future__ import annotations

import asyncio

from mitmproxy import ctx


class PageOpen:
    def running(self) -> None:
        addon = ctx.master.addons.get("azureopenaiproxy")
        assert addon, "it is loaded before this"
        self.looking = asyncio.create_task(self.look(addon.site()))

    async def look(self, server: object) -> None:
        """Follow the events, and read the list after each one, as the page does."""
        respond = server.respond  # type: ignore[attr-defined]
        events = await respond("GET", "api/events", {}, b"", "")
        async for _ in events.body:
            await respond("GET", "api/threads", {"kind": "threads", "offset": "0", "limit": "100"}, b"", "")


addons = [PageOpen()]
