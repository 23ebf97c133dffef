"""Addons of mitmproxy whose hooks for a request need not be called, by their public options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mitmproxy.addons import (
    anticache,
    anticomp,
    blocklist,
    dumper,
    maplocal,
    mapremote,
    modifybody,
    modifyheaders,
    onboarding,
    proxyauth,
    save,
    savehar,
    stickyauth,
    stickycookie,
    upstream_auth,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mitmproxy.http import HTTPFlow
    from mitmproxy.options import Options

__all__ = ["IDLE", "is_idle", "unless_foreign"]

IDLE: Mapping[type, str] = {
    anticache.AntiCache: "anticache",
    anticomp.AntiComp: "anticomp",
    blocklist.BlockList: "block_list",
    dumper.Dumper: "flow_detail",
    maplocal.MapLocal: "map_local",
    mapremote.MapRemote: "map_remote",
    modifybody.ModifyBody: "modify_body",
    modifyheaders.ModifyHeaders: "modify_headers",
    onboarding.Onboarding: "onboarding",
    proxyauth.ProxyAuth: "proxyauth",
    save.Save: "save_stream_file",
    savehar.SaveHar: "hardump",
    stickyauth.StickyAuth: "stickyauth",
    stickycookie.StickyCookie: "stickycookie",
    upstream_auth.UpstreamAuth: "upstream_auth",
}
"""Addons of mitmproxy that do nothing in the hooks of connections while the given option is off or empty."""


def is_idle(addon: object, options: Options) -> bool:
    """Whether the hooks of connections of this addon do nothing."""
    option = IDLE.get(type(addon))
    return option is not None and option in options and not getattr(options, option)


def unless_foreign(addon: object, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook; of the addon that serves mitmproxy's own page, which is asynchronous, one that is called for its host only."""
    if type(addon) is not onboarding.Onboarding:
        return hook
    return lambda flow: hook(flow) if _names(flow, addon.host) and addon.should_serve(flow) else None


def _names(flow: HTTPFlow, host: str) -> bool:
    """Whether the request may be for `host`: a cheap test before the exact one."""
    data = flow.request.data
    return host in data.host or host.encode() in data.authority or host in data.headers.get("host", "")
