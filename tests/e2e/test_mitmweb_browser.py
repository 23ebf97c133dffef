"""mitmweb in a browser: what a person sees of our flows, and that each view shows it. The pictures in the documentation come from here:
`SCREENSHOTS=docs/images make test ARGS=tests/e2e/test_mitmweb_browser.py`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from flows import of_each_kind

from mitmweb import mitmweb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from azure_simulator import Simulator
    from mitmweb import Web
    from support import Decoy

CHROMIUM = shutil.which("chromium")
PICTURES = os.environ.get("SCREENSHOTS")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium` brings it"),
    pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning"),  # the SDK does not
]


@pytest.fixture
def web(azure: Simulator, decoy: Decoy, confdir: Path, tmp_path: Path) -> Iterator[Web]:
    """mitmweb with a few flows of each kind in it."""
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_model_mapper": "fast=gpt-4o"}
    with mitmweb(tmp_path, confdir, decoy.port, **options) as web:
        with openai.OpenAI(base_url=f"{web.proxy.url}/v1", api_key=azure.key, max_retries=0) as client:
            of_each_kind(client, azure)
        yield web


@pytest.fixture
def page(web: Web) -> Iterator[Page]:
    """A browser that has opened mitmweb's address and sees its list."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `make test` brings it")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 640})
        page.goto(web.url)
        page.wait_for_selector(".flow-table tbody td")
        yield page
        browser.close()


def choose(page: Page, row: str, tab: str, view: str = "") -> str:
    """Open a flow, one of its two messages, and a view; the text that is there then."""
    page.locator(".flow-table tbody tr", has_text=row).first.click()
    page.locator(".nav-tabs-sm a", has_text=tab).first.click()
    if view:
        page.locator(".controls a", has_text="View:").click()
        page.get_by_text(view.lower(), exact=True).last.click()
        page.locator(".controls h5", has_text=view).wait_for()
    page.locator(".controls + pre").wait_for()
    return page.locator(".controls + pre").inner_text()


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_a_person_sees_what_happened(page: Page, azure: Simulator) -> None:
    """The list tells what each was; the views that choose themselves, and those that are chosen, have the text that is looked for."""
    rows = page.locator(".flow-table tbody tr .col-comment").all_inner_texts()
    picture(page, "list")
    assert [] == [
        start for start in ("gpt-3.5-turbo → gpt-35-turbo · ", "gpt-realtime · ", "gpt-9 · 404", "tts-1 → tts") if start not in str(rows)
    ]

    asked = choose(page, "gpt-35-turbo", "Request")
    picture(page, "conversation")
    assert "── user\nEvery word of this comes back to you" in asked.replace("\n\n", "\n")

    answered = choose(page, "gpt-35-turbo", "Response")
    page.locator(".controls + pre").scroll_into_view_if_needed()
    page.mouse.move(1000, 500)
    page.mouse.wheel(0, 2000)
    page.wait_for_timeout(200)
    picture(page, "answer")
    told = [text for text in ("── assistant", "You said: Every word", "── chunks", "sent by Azure and dropped") if text not in answered]
    assert [] == told

    assert '"model":"gpt-3.5-turbo"' in choose(page, "gpt-35-turbo", "Request", "As the client sent it")
    assert "prompt_filter_results" in choose(page, "gpt-35-turbo", "Response", "As Azure sent it")
    assert "image/png, " in choose(page, "gpt-4o", "Request", "Conversation")
    assert "tool call get_weather" in choose(page, "gpt-4o · first chunk", "Response", "Answer")
    assert azure.key not in page.content()
