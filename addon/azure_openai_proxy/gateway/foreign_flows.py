"""Responses of other hosts that clients reach through the proxy (`HTTP_PROXY` covers them too): streamed where nothing needs their body.

mitmproxy holds a response until it is complete, so a stream arrives at its end and a download takes its size in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.addonmanager import traverse

if TYPE_CHECKING:
    from mitmproxy.master import Master

__all__ = ["streams"]

OPTIONS = ("modify_body", "save_stream_file", "hardump", "stickycookie", "client_replay")
"""Of mitmproxy: with any of them bodies are changed or kept."""
BODIES_SHOWN = 3
"""mitmdump's flow_detail from which it prints bodies."""


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
