"""mitmweb's page. tests/e2e/test_mitmweb_browser.py looks at it in a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import ctx
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import Application

from azure_openai_proxy.formats import quoting
from azure_openai_proxy.inspection.site import mitmweb
from azure_openai_proxy.mitmproxy_patches import compat, install

if TYPE_CHECKING:
    from collections.abc import Iterator


def served(master: Any, path: str, body: bytes) -> tuple[bytes, str]:
    """What a browser gets of a page with that body, and what its length is said to be."""
    headers = HTTPHeaders({"Content-Length": str(len(body))})
    for transform in master.app.transforms:
        made = transform(HTTPServerRequest(method="GET", uri=path, connection=SimpleNamespace()))  # type: ignore[arg-type]
        _, headers, body = made.transform_first_chunk(200, headers, body, finishing=True)
    return body, headers["Content-Length"]


def style() -> type[mitmweb.CommentStyle]:
    return mitmweb.CommentStyle


class WebMaster(SimpleNamespace):
    """A master of mitmweb without a server."""

    __module__ = "mitmproxy.tools.web.master"


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    master = WebMaster(app=Application())
    monkeypatch.setattr(ctx, "master", master, raising=False)
    vars(compat.WEB).pop("usable", None)
    yield master
    vars(compat.WEB).pop("usable", None)


@pytest.mark.parametrize("path, styled", [("/", True), ("/?token=a", True), ("/flows", False)])
def test_the_page_has_room_for_comments(path: str, styled: bool, master: Any) -> None:
    """The page alone, and its length is right; loaded again it has it once, and afterwards no more."""
    body = b"<head></head>"
    install.show_comments(master, quoting.line, style, shown=True)
    install.show_comments(master, quoting.line, style, shown=True)
    expected = b"<head>" + mitmweb.STYLE * styled + b"</head>"
    assert (expected, str(len(expected))) == served(master, path, body)
    install.show_comments(master, quoting.line, style, shown=False)
    assert (body, str(len(body))) == served(master, path, body)


def test_another_page_is_left_alone(master: Any) -> None:
    """One without a head."""
    install.show_comments(master, quoting.line, style, shown=True)
    assert (b"{}", "2") == served(master, "/", b"{}")


def test_a_renamed_attribute_of_mitmweb_is_a_warning(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If mitmweb's application has another name, one warning names it and the loss."""
    del master.app
    install.show_comments(master, quoting.line, style, shown=True)
    install.show_comments(master, quoting.line, style, shown=False)
    (line,) = caplog.messages
    assert "no attribute 'app'" in line
    assert line.endswith(compat.WEB.lost)
