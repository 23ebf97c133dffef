"""A thread as a file, from the page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from mitmproxy.addons.view import View

from azure_openai_proxy.inspection.sharing import guarded
from azure_openai_proxy.inspection.site import shares as sharing
from azure_openai_proxy.inspection.site.index import Index
from azure_openai_proxy.inspection.site.server import BadRequest, Query
from azure_openai_proxy.inspection.site.shares import Shares
from support.conversations import assistant, chat, user

if TYPE_CHECKING:
    from azure_openai_proxy.config.settings import Settings

KEY = "the-configured-key-0123"
FLOW = chat([user(f"I am bob@example.com of project Zephyr, with {KEY}")], assistant("fine"))


def shares() -> Shares:
    view = View()
    view.add([FLOW])
    return Shares(Index(view, lambda: None), lambda: cast("Settings", SimpleNamespace(tokens=(KEY,), prices=None)))


async def test_a_preview_has_no_secrets() -> None:
    """Keys are always removed; other texts by choice, with their number."""
    seen = await shares().preview(Query(id=FLOW.id, format="markdown", redact="emails", patterns="Zephyr\n\n"))
    assert [] == [secret for secret in ("bob@example.com", "Zephyr", KEY) if secret in seen["text"]]
    assert ({"key", "email"}, False) == (seen["removed"].keys() & {"key", "email"}, seen["more"])
    kept = await shares().preview(Query(id=FLOW.id, format="jsonl"))
    assert "bob@example.com" in kept["text"]
    assert KEY not in kept["text"]


async def test_a_long_preview_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so."""
    monkeypatch.setattr(sharing, "LONGEST_PREVIEW", 5)
    seen = await shares().preview(Query(id=FLOW.id, format="markdown"))
    assert (5, True) == (len(seen["text"]), seen["more"])


async def test_a_file_can_run_nothing() -> None:
    """In the page's frame it has no origin and no scripts; to be saved it has a name."""
    shown = await shares().share(Query(id=FLOW.id, format="html"))
    assert isinstance(shown.body, bytes)
    assert shown.body.startswith(b"<!doctype html>")
    assert shown.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert "Content-Disposition" not in shown.headers
    saved = await shares().share(Query(id=FLOW.id, format="markdown", download="yes"))
    assert 'attachment; filename="thread.md"' == saved.headers["Content-Disposition"]


@pytest.mark.parametrize(
    "query, reason",
    [
        ({"format": "text"}, "format must be"),
        ({"id": "nothing"}, "no such thread"),
        ({"patterns": "x" * 3000}, "too long"),
        ({"patterns": "("}, "."),
    ],
)
async def test_sharing_is_refused(query: dict[str, str], reason: str) -> None:
    """The reason is a sentence."""
    with pytest.raises(BadRequest, match=reason):
        await shares().share(Query({"id": FLOW.id, "format": "html", **query}))


async def test_a_pattern_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its search does not stop mitmweb."""
    monkeypatch.setattr(guarded, "LONGEST_TIME", 0.1)
    with pytest.raises(BadRequest, match="takes too long"):
        await shares().preview(Query(id=FLOW.id, format="html", patterns=r"(\w|.)+\x00"))
