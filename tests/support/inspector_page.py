"""The inspector's page in Chromium: the browser, mitmweb with a file, and the hands of a person, with a mouse or on the keyboard alone."""

from __future__ import annotations

import shutil
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from support.inspector import TITLE, write
from support.mitmweb import PASSWORD
from support.processes import MITMWEB, PATIENCE, ROOT, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

    from support.mitmweb import Web

__all__ = ["AXE", "CHROMIUM", "LOOKS", "Hand", "Look", "ask", "call", "chromium", "open_thread", "opened", "page_of", "site"]

CHROMIUM = shutil.which("chromium")
AXE = ROOT / ".venv-node" / "node_modules" / "axe-core" / "axe.min.js"
FURTHEST = 300
"""Steps of the Tab key within which each control is reached."""


class Look(NamedTuple):
    """How a person looks at the page."""

    width: int
    scheme: str


LOOKS = [Look(1400, "light"), Look(360, "dark")]


@contextmanager
def chromium() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `make test` brings it")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(folder: Path, flows: list[Any]) -> Iterator[str]:
    """mitmweb with a file, and without any endpoint: the address of its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = write(folder / "session.flows", flows)
    options = {
        "web_password": PASSWORD,
        "web_port": port,
        "web_open_browser": False,
        "rfile": file,
        "server": False,
    }
    process = Mitmdump(folder / "home", folder / "confdir", options=options, command=(MITMWEB,)).launch()
    try:
        process.wait_for_log("Web server listening")
        yield f"http://127.0.0.1:{port}/azure/?token={PASSWORD}"
    finally:
        process.stop()


@contextmanager
def page_of(browser: Browser, address: str, look: Look = LOOKS[0]) -> Iterator[Page]:
    """A page that may neither log an error nor ask another host, and that fits its window."""
    page = browser.new_page(viewport={"width": look.width, "height": 800}, color_scheme=look.scheme)  # type: ignore[arg-type]
    page.set_default_timeout(2 * PATIENCE * 1000)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    home = address.partition("/azure")[0]
    page.on("request", lambda request: None if request.url.startswith((f"{home}/", "data:", "blob:")) else faults.append(request.url))
    try:
        page.goto(address)
        page.wait_for_selector(".row")
        yield page
        assert not faults, faults
        assert page.evaluate("document.documentElement.scrollWidth") <= look.width
        assert page.evaluate("window.executed") is None
    finally:
        page.close()


def site(web: Web) -> str:
    return web.url.replace("/?", "/azure/?")


def ask(web: Web, messages: list[Any], **more: Any) -> dict[str, Any]:
    """Send a chat through the proxy, and return the message of the answer."""
    body = {"model": "gpt-4o", "messages": messages, **more}
    answer = httpx.post(
        f"{web.proxy.url}/v1/chat/completions", json=body, headers={"authorization": "Bearer x"}, timeout=PATIENCE, trust_env=False
    )
    return dict(answer.raise_for_status().json()["choices"][0]["message"])


def open_thread(page: Page, title: str = TITLE) -> None:
    page.locator(".row", has_text=title).first.click()
    page.locator("h2", has_text=title).wait_for()


def call(page: Page, number: int) -> Locator:
    return page.get_by_role("article", name=f"Call {number}", exact=True)


class Hand:
    """Uses the page with the mouse, or with the keyboard alone: then each control is reached with Tab, and the focus is visible."""

    def __init__(self, page: Page, *, keyboard: bool) -> None:
        self.page, self.keyboard = page, keyboard

    def press(self, control: Locator, key: str = "Enter") -> None:
        if not self.keyboard:
            control.click()
            return
        self.reach(control)
        self.page.keyboard.press(key)

    def fill(self, field: Locator, text: str) -> None:
        if not self.keyboard:
            field.fill(text)
            return
        self.reach(field)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(text)

    def choose(self, select: Locator, text: str) -> None:
        """Choose the first option with this text, when the page has it."""
        select.locator("option", has_text=text).first.wait_for(state="attached")
        texts = select.locator("option").all_inner_texts()
        place = next(index for index, each in enumerate(texts) if text in each)
        if not self.keyboard:
            select.select_option(index=place)
            return
        self.reach(select)
        self.page.keyboard.press("Home")
        for _ in range(place):
            self.page.keyboard.press("ArrowDown")
        assert text in select.locator("option:checked").inner_text()

    def reach(self, control: Locator) -> None:
        control.wait_for()
        where = "element => element === document.activeElement ? 0 : element.compareDocumentPosition(document.activeElement) & 4 || 2"
        for _ in range(FURTHEST):
            place = control.evaluate(where)
            if place == 0:
                assert "none" != control.evaluate("element => getComputedStyle(element).outlineStyle")
                return
            self.page.keyboard.press("Shift+Tab" if place == 4 else "Tab")
        raise AssertionError(f"Tab does not reach {control}")
