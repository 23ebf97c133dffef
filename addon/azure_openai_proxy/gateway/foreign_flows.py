"""Streaming of responses from other hosts, which clients also reach through the proxy with `HTTP_PROXY`.

By default mitmproxy buffers a response until it is complete, so streams are delayed and downloads use memory. Responses are streamed unless
an interface, option or script needs the body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.addonmanager import traverse

if TYPE_CHECKING:
    from mitmproxy.master import Master

__all__ = ["streams"]

OPTIONS = ("modify_body", "save_stream_file", "hardump", "stickycookie", "client_replay")
"""Options of mitmproxy that change or keep bodies."""
BODIES_SHOWN = 3
"""The lowest value of `flow_detail` with which mitmdump prints bodies."""


def streams(master: Master) -> bool:
    """Return whether no interface, option or other script needs the bodies."""
    options = master.options
    if hasattr(master, "view") or (getattr(options, "flow_detail", 0) >= BODIES_SHOWN and master.addons.get("dumper")):
        return False
    if any(name in options and getattr(options, name) for name in OPTIONS):
        return False
    scripts = getattr(master.addons.get("scriptloader"), "addons", ())
    others = (addon for addon in traverse(list(scripts)) if not type(addon).__module__.startswith("azure_openai_proxy"))
    return not any(hasattr(addon, "response") for addon in others)
