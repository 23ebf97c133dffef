"""Adds to mitmweb's page and to its paths, behind mitmweb's authentication and its check of cross-site requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.tools.web.app import RequestHandler

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from tornado import web

__all__ = ["Mount", "insert", "serve"]

type Mount = tuple[str, type[web.RequestHandler], type[web.OutputTransform]]
"""The pattern of the site's paths, the handler of its requests, and the insertion of the link to it."""

_NAME = "azure_openai_inspector"
_LINK = "PageLink"


def insert(master: Master, name: str, insertion: type[web.OutputTransform] | None) -> None:
    """Apply the insertion of this name to the pages of this mitmweb, or none. Reloads create new classes of the same name."""
    transforms: list[type[web.OutputTransform]] = master.app.transforms  # type: ignore[attr-defined]
    transforms[:] = [one for one in transforms if one.__name__ != name]
    if insertion:
        transforms.insert(0, insertion)  # before the compression


def serve(master: Master, site: Mount | None) -> None:
    """Add the site to this mitmweb, replace it, or remove it."""
    app: web.Application = master.app  # type: ignore[attr-defined]
    rules = app.default_router.rules
    rules[:] = [rule for rule in rules if getattr(rule, "name", None) != _NAME]
    link = None
    if site:
        pattern, handler, link = site
        # mitmproxy wraps `get` and `post` of its subclasses in its authentication.
        app.add_handlers(".*", [(pattern, type(handler.__name__, (handler, RequestHandler), {}))])
        rules[-2].name = _NAME  # the last rule is mitmweb's own
    insert(master, _LINK, link)
