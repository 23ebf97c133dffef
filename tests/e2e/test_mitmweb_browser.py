"""mitmweb in a browser: what a person sees of our flows, and that each view shows it. The pictures in the documentation come from here:
`SCREENSHOTS=docs/images make test ARGS=tests/e2e/test_mitmweb_browser.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest
from flows import of_each_kind

from support.marks import BROWSER, second_try
from support.mitmweb import mitmweb
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from azure_simulator import Simulator
    from support.mitmweb import Web
    from support.processes import Decoy

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


@contextmanager
def asking(web: Web, key: str) -> Iterator[list[str]]:
    """A client that sends a request while a person looks on; in the end its response, or its error, is there."""
    said: list[str] = []

    def ask() -> None:
        try:
            with openai.OpenAI(base_url=f"{web.proxy.url}/v1", api_key=key, max_retries=0) as client:
                answer = client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "Is it raining in Oslo?"}])
            said.append(str(answer.choices[0].message.content))
        except openai.APIError as error:  # also when the test failed and the proxy ends: the reason is then the test's
            said.append(repr(error))

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    yield said
    client.join(PATIENCE)


def edit(page: Page, held: str, tab: str, new: str, name: str) -> None:
    """Wait for the intercepted flow, change its body, and resume it."""
    from playwright.sync_api import TimeoutError as TimedOut

    page.locator(held).click()
    page.locator(".nav-tabs-sm a", has_text=tab).click()
    page.get_by_role("button", name="Edit").click()
    line = ".cm-line, .CodeMirror-line"  # of the editor of mitmproxy 12.1 and of the one before
    edited = page.locator(line, has_text=re.compile(f"^{re.escape(new)}$"))
    for _ in range(5):
        page.locator(line, has_text="{").wait_for()  # the body
        page.locator(".cm-content, .CodeMirror textarea").focus()  # not by a click: a scroll bar can cover the only line
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(new)
        with suppress(TimedOut):
            edited.wait_for(timeout=4_000)
            break  # else mitmweb has replaced the editor because something about the flow changed, and the keys went nowhere
    edited.wait_for()
    picture(page, name)
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Resume").click()


def choose(page: Page, row: str | re.Pattern[str], tab: str, view: str = "") -> str:
    """Open a flow, one of its two messages, and a view; the text that is there then."""
    page.locator(".flow-table tbody tr", has_text=row).first.click()
    page.locator(".nav-tabs-sm a", has_text=tab).first.click()
    if view:
        page.locator(".controls a", has_text="View:").click()
        page.get_by_text(view.lower(), exact=True).last.click()
        page.locator(".controls h5", has_text=view).wait_for()
    page.locator(".controls + pre").wait_for()
    return page.locator(".controls + pre").inner_text()


def to_the_end(page: Page) -> None:
    page.locator(".controls + pre").evaluate("pre => pre.scrollIntoView({block: 'end', behavior: 'instant'})")


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


@second_try(BROWSER)
def test_a_person_sees_what_happened(page: Page, azure: Simulator) -> None:
    """The list tells what each was; the views that choose themselves, and those that are chosen, have the text that is looked for."""
    comments = page.locator(".flow-table tbody tr .col-comment")
    rows = comments.all_inner_texts()
    assert not comments.evaluate_all("cells => cells.some(cell => cell.scrollWidth > cell.clientWidth)")  # each is seen whole
    picture(page, "list")
    assert [] == [
        start for start in ("gpt-3.5-turbo → gpt-35-turbo · ", "gpt-realtime · ", "gpt-9 · 404", "tts-1 → tts") if start not in str(rows)
    ]

    asked = choose(page, "gpt-4o", "Request")
    to_the_end(page)
    picture(page, "conversation")
    assert "── user\nWhat is in this picture?\n[image" in asked
    assert "── user\nEvery word of this comes back to you" in choose(page, "gpt-35-turbo", "Request")

    answered = choose(page, "gpt-35-turbo", "Response")
    to_the_end(page)
    picture(page, "answer")
    assert not page.locator(".controls + pre").evaluate("pre => pre.scrollWidth > pre.clientWidth")  # nothing is cut off
    told = [text for text in ("── assistant", "You said: Every word", "── chunks", "sent by Azure and dropped") if text not in answered]
    assert [] == told

    assert '"model":"gpt-3.5-turbo"' in choose(page, "gpt-35-turbo", "Request", "As the client sent it")
    assert "prompt_filter_results" in choose(page, "gpt-35-turbo", "Response", "As Azure sent it")
    assert "image/png, " in choose(page, "gpt-4o", "Request", "Conversation")
    assert "tool call get_weather" in choose(page, re.compile(r"gpt-4o · .* · first chunk"), "Response", "Answer")
    assert azure.key not in page.content()


@second_try(BROWSER)
def test_a_person_changes_what_is_asked_and_answered(page: Page, web: Web, azure: Simulator) -> None:
    """Both wait until they are let go; Azure gets the one and the client the other as they were changed, and Azure the key."""
    page.get_by_placeholder("Intercept").fill("~u chat/completions & ~q")
    with asking(web, azure.key) as said:
        edit(page, "tr.intercepted", "Request", '{"messages":[{"role":"user","content":"In Bergen?"}]}', "edit-request")
    assert ["You said: In Bergen?"] == said
    assert azure.key == azure.requests[-1].header("api-key")

    page.locator("a", has_text="Flow List").click()
    page.get_by_placeholder("Intercept").fill("~u chat/completions & ~s")
    with asking(web, azure.key) as said:
        edit(page, "tr.intercepted.has-response", "Response", '{"choices":[{"message":{"content":"It rains."}}]}', "edit-answer")
    assert ["It rains."] == said
    assert azure.key not in page.content()
