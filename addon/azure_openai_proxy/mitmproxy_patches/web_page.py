"""Adds to mitmweb's page and to its paths, behind mitmweb's authentication and its check of cross-site requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mitmproxy.tools.web.app import RequestHandler

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from tornado import web

__all__ = ["Mount", "insert", "serve"]

_NAME = "azure_openai_inspector"
_LINK = "PageLink"


class Mount(Protocol):
    """A page of its own and the link to it."""

    @property
    def pattern(self) -> str: ...

    @property
    def handler(self) -> type[web.RequestHandler]: ...

    @property
    def link(self) -> type[web.OutputTransform]: ...


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
    if site:
        # mitmproxy wraps `get` and `post` of its subclasses in its authentication.
        app.add_handlers(".*", [(site.pattern, type(site.handler.__name__, (site.handler, RequestHandler), {}))])
        rules[-2].name = _NAME  # the last rule is mitmweb's own
    insert(master, _LINK, site.link if site else None)
