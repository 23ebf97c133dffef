"""A script for mitmproxy's `-s`, after the addon: disables the recorder, to measure its cost."""

from __future__ import annotations

from typing import Any

from mitmproxy import ctx

from azure_openai_proxy.inspection.recorder import Recorder


class Blind(Recorder):
    def asked(self, *_: Any) -> None: ...

    def sent(self, *_: Any) -> None: ...

    def answered(self, *_: Any) -> None: ...

    def streams(self, *_: Any) -> None: ...

    def ended(self, *_: Any) -> None: ...

    def websocket_ended(self, *_: Any) -> None: ...


class Unseen:
    def running(self) -> None:
        addon = ctx.master.addons.get("azureopenaiproxy")
        assert addon, "it is loaded before this"
        addon.recorder = addon.registry.recorder = Blind()


addons = [Unseen()]
