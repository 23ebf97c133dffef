"""A script for mitmproxy's `-s`, after the addon: disables the recorder, to measure its cost."""

from __future__ import annotations

from typing import Any

from mitmproxy import ctx

from azure_openai_proxy.inspection.recorder import Recorder


class Blind(Recorder):
    def record_request(self, *_: Any) -> None: ...

    def record_upstream_request(self, *_: Any) -> None: ...

    def record_response_head(self, *_: Any) -> None: ...

    def tap_stream(self, *_: Any) -> None: ...

    def record_end(self, *_: Any) -> None: ...

    def record_websocket_end(self, *_: Any) -> None: ...


class Unseen:
    def running(self) -> None:
        addon = ctx.master.addons.get("azureopenaiproxy")
        assert addon, "it is loaded before this"
        addon.recorder = addon.registry.recorder = Blind()


addons = [Unseen()]
