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
    tlsconfig,
    update_alt_svc,
    upstream_auth,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mitmproxy.http import HTTPFlow
    from mitmproxy.options import Options

__all__ = ["IDLE", "if_needed", "is_idle"]

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


def if_needed(addon: object, name: str, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook of this name; of an addon of mitmproxy that acts on few flows, one that is called for those only."""
    needed = _NEEDED.get((type(addon), name))
    return hook if needed is None else lambda flow: hook(flow) if needed(addon, flow) else None


def _is_for_page(addon: Any, flow: HTTPFlow) -> bool:
    """Whether the request is for mitmproxy's own page, whose hook is asynchronous."""
    return _names(flow, addon.host) and bool(addon.should_serve(flow))


def _may_ask_for_revocations(_: Any, flow: HTTPFlow) -> bool:
    """Whether the request may be for a list of revoked certificates. The hook reads mitmproxy's certificate and two options (6 µs)."""
    path = flow.request.data.path
    return path.endswith(b".crl") or not path.startswith(_API_PATHS)


def _has_alternatives(_: Any, flow: HTTPFlow) -> bool:
    """Whether the response names alternative servers, whose ports the hook replaces. It reads an option first."""
    return flow.response is not None and "alt-svc" in flow.response.headers


_API_PATHS = (b"/v1/", b"/openai/")
_NEEDED: Mapping[tuple[type, str], Callable[[Any, HTTPFlow], bool]] = {
    (onboarding.Onboarding, "request"): _is_for_page,
    (tlsconfig.TlsConfig, "request"): _may_ask_for_revocations,
    (update_alt_svc.UpdateAltSvc, "responseheaders"): _has_alternatives,
}
"""Hooks of mitmproxy's addons, and whether they act on a flow."""


def _names(flow: HTTPFlow, host: str) -> bool:
    """Whether the request may be for `host`: a cheap test before the exact one."""
    data = flow.request.data
    return host in data.host or host.encode() in data.authority or host in data.headers.get("host", "")
