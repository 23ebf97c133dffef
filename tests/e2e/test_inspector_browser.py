"""The inspector's page in a browser: its views in detail, live updates, accessibility, long lists and hostile texts.

`test_inspector_actions.py` has all actions of a person, narrow and wide, dark and light, with the mouse and on the keyboard alone.

The pictures in the documentation come from here: `SCREENSHOTS=docs/images make test ARGS=tests/e2e/test_inspector_browser.py`.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import agent_session
import openai
import pytest

from azure_simulator import Gate, Simulator
from support.conversations import assistant, chat, user
from support.inspector import HOSTILE, TITLE, session
from support.inspector_page import AXE, CHROMIUM, LOOKS, Look, ask, call, chromium, open_thread, opened, page_of, site
from support.marks import BROWSER, second_try
from support.mitmweb import mitmweb
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from support.mitmweb import Web

PICTURES = os.environ.get("SCREENSHOTS")

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium` brings it")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def azure() -> Iterator[Simulator]:
    with Simulator() as azure:
        yield azure


@pytest.fixture(scope="module")
def live(azure: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """mitmweb that proxies."""
    home = tmp_path_factory.mktemp("live")
    with mitmweb(home, home / "confdir", 9, azure_openai_endpoint=azure.http_url, azure_openai_token=azure.key) as web:
        ask(web, [user("hello")])
        yield web


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page on a saved session."""
    with opened(tmp_path_factory.mktemp("file"), session()) as address:
        yield address


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


@second_try(BROWSER)
@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_a_saved_thread_is_read(browser: Browser, file: str, look: Look) -> None:
    """Threads with their sums, the subagent below its parent; the conversation once, results beside their tool calls, an image and a sound;
    and for each call where it went, what it cost, and why the cache broke.
    """
    with page_of(browser, file, look) as page:
        rows = page.locator(".row").all_inner_texts()
        assert ["Silence", "weather", TITLE, "Find all callers"] == [
            next(
                word
                for word in ("Silence", "weather", TITLE, "Find all callers")
                if word in row or (word == "Silence" and "no text" in row)
            )
            for row in rows
        ]
        assert re.search(r"alice\s+3 calls", rows[2])
        assert "1 failed" in rows[1]
        open_thread(page)
        assert 1 == page.locator(".block-user", has_text=TITLE).count()
        assert page.locator("img.thumbnail").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        assert "read_file" in page.locator(".bar.tool").first.inner_text()
        first, second, third = (call(page, number) for number in (1, 2, 3))
        assert ["def parse(text)", "assert ['a', 'b']"] == [
            text[: len(start)]
            for text, start in zip(first.locator(".result pre").all_inner_texts(), ("def parse(text)", "assert ['a', 'b']"), strict=True)
        ]
        shown = second.inner_text()
        for expected in (
            "gpt-4o → prod @ east",
            "2,304 in, 1,920 cached",
            "west 429 → east ok",
            "max_tokens → max_completion_tokens",
            "before inference 31 ms",
            "proxy 1 ms",
            "Context (tokens): system",
        ):
            assert expected in shown
        third.get_by_text("Cache broken: the system prompt changed").click()
        third.locator(".broken ins").wait_for()
        assert ["2026-11-28"] == third.locator(".broken del").all_inner_texts()
        assert ["2026-11-29"] == third.locator(".broken ins").all_inner_texts()
        assert 2 == third.locator(".broken mark").count()
        page.get_by_role("region", name="Subagents").get_by_role("link", name="Find all callers").click()
        page.locator("h2", has_text="Find all callers").wait_for()
        page.get_by_role("link", name=TITLE).wait_for()
        page.go_back()
        page.go_back()
        page.locator(".row", has_text="no text").click()
        page.locator("audio[controls]").wait_for(state="attached")
        assert 1 == page.locator("audio[controls]").count()
        page.get_by_role("link", name="Single calls").click()
        page.locator(".row", has_text="embeddings").wait_for()


VIEWS = [
    "#/",
    "#/single",
    "#/thread/{thread}",
    "#/diff/{first}/{second}",
    "#/compare",
    "#/replay/{first}",
    "#/share/{thread}",
    "#/search?q=parse",
    "#/breakpoints",
]


@second_try(BROWSER)
def test_a_shared_file_from_the_disk(browser: Browser, file: str, tmp_path: Path) -> None:
    """It shows the thread with scripts off, requests nothing, and has no link but to itself."""
    with page_of(browser, file) as page:
        open_thread(page)
        page.get_by_role("link", name="Share").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Save file").click()
        download.value.save_as(tmp_path / "thread.html")
    context = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto(f"file://{tmp_path}/thread.html")
    page.get_by_text("I split at semicolons now.").wait_for()
    page.get_by_text("There is one caller: main.py.").first.wait_for()
    assert {"file", "data"} >= set(asked)
    assert 1 == asked.count("file")
    links = page.locator("a").all()
    assert [] == [link for one in links if not (link := one.get_attribute("href") or "#").startswith("#")]
    context.close()


@second_try(BROWSER)
@pytest.mark.parametrize("look", [*LOOKS, Look(1400, "dark"), Look(360, "light")], ids=str)
def test_assistive_technology(browser: Browser, file: str, look: Look) -> None:
    """axe-core finds no serious fault in any view."""
    if not AXE.exists():
        pytest.skip("no axe-core: `make test` brings it with npm")
    with page_of(browser, file, look) as page:
        listed = page.evaluate("fetch('api/threads').then(response => response.json())")["threads"]
        thread = next(one["id"] for one in listed if one["title"] == TITLE)
        calls = page.evaluate("id => fetch('api/thread?id=' + id).then(response => response.json())", thread)["calls"]
        names = {"thread": thread, "first": calls[0]["id"], "second": calls[2]["id"]}
        page.evaluate(AXE.read_text())
        found = []
        for view in VIEWS:
            seen = page.evaluate("document.getElementById('main').dataset.ready")
            page.evaluate("hash => { location.hash = hash + (hash === location.hash ? '?' : ''); }", view.format(**names))
            page.wait_for_function("seen => document.getElementById('main').dataset.ready !== seen", arg=seen)
            result = page.evaluate("axe.run(document, {iframes: false, resultTypes: ['violations']})")
            found += [
                (view, fault["id"], fault["nodes"][0]["html"][:200])
                for fault in result["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
        assert [] == found


@second_try(BROWSER)
def test_calls_appear_while_they_run(browser: Browser, live: Web) -> None:
    """mitmweb's own page has a link; a new thread appears in the list, and a new call in the open thread, without a reload."""
    ask(live, [user("live zero")])
    mitmwebs = browser.new_page()
    mitmwebs.goto(live.url)
    mitmwebs.get_by_role("link", name="LLM threads").click()
    mitmwebs.locator(".row", has_text="live zero").wait_for()
    mitmwebs.close()
    with page_of(browser, site(live)) as page:
        messages = [user("live one")]
        messages.append(ask(live, messages))
        open_thread(page, "live one")
        call(page, 1).wait_for()
        ask(live, [*messages, user("live two")])
        call(page, 2).get_by_text("You said: live two").wait_for()
        assert 1 == page.locator(".block-user", has_text="live one").count()


@second_try(BROWSER)
def test_parallel_calls_end_in_any_order(browser: Browser, live: Web, azure: Simulator) -> None:
    """A call that ends after the last one of its thread is shown as complete, too."""
    title = "two at once"
    begun = [user(title), ask(live, [user(title)])]
    gate = Gate(None)
    azure.faults.next(gate)
    slow = threading.Thread(target=ask, args=(live, [*begun, user("the slow one")]))
    slow.start()
    try:
        assert gate.reached.wait(PATIENCE)
        ask(live, [*begun, user("the fast one")])
        with page_of(browser, site(live)) as page:
            open_thread(page, title)
            call(page, 2).get_by_text("running", exact=True).wait_for()
            call(page, 3).get_by_text("You said: the fast one").wait_for()
            gate.release()
            call(page, 2).get_by_text("You said: the slow one").wait_for()
    finally:
        gate.release()
        slow.join()


@second_try(BROWSER)
def test_an_address_that_is_damaged(browser: Browser, file: str) -> None:
    """The view that it names is shown, instead of the view before."""
    with page_of(browser, file) as page:
        page.goto(f"{file}#/breakpoints/%E0%A4")
        page.get_by_role("heading", name="Breakpoints").wait_for()


@second_try(BROWSER)
@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_an_agent_is_watched(browser: Browser, live: Web, azure: Simulator, look: Look) -> None:
    """The session of `make web`: one thread with its subagent, parallel tools on the time axis, and the clock that broke the cache."""
    with openai.OpenAI(base_url=f"{live.proxy.url}/v1", api_key="x") as client, page_of(browser, site(live), look) as page:
        agent_session.run(client, azure)
        page.locator(".row", has_text="5 calls").first.wait_for()
        if look == LOOKS[1]:
            picture(page, "inspector-list")
        page.locator(".row", has_text="5 calls").first.click()
        page.get_by_role("region", name="Subagents").get_by_role("link", name=agent_session.SEARCH).wait_for()
        assert 2 == page.locator(".bar.tool", has_text="read_file").count()
        if look == LOOKS[0]:
            picture(page, "inspector-thread")
        broken = call(page, 4)
        assert "Cache: 0 of" not in call(page, 3).inner_text()
        broken.get_by_text("Cache broken: the system prompt changed").click()
        broken.locator(".broken ins", has_text="10:01").wait_for()
        assert "10:00" in broken.locator(".broken del").inner_text()
        if look == LOOKS[0]:
            broken.scroll_into_view_if_needed()
            picture(page, "inspector-cache")


@second_try(BROWSER)
def test_a_hostile_conversation(browser: Browser, tmp_path: Path) -> None:
    """Nothing in it is executed or loaded in any view, and thousands of blocks and a megabyte of text come in parts."""
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": HOSTILE, "arguments": HOSTILE}} for n in range(5000)]
    start = [{"role": "system", "content": HOSTILE}, {"role": HOSTILE, "content": HOSTILE}, user(HOSTILE)]
    name = HOSTILE.replace("\udcff", "")  # metadata is UTF-8
    flows = [
        chat(start, assistant(HOSTILE, *calls), model=HOSTILE, metadata={"model": name, "backend": name, "deployment": name}),
        chat([*start, assistant(HOSTILE), user("x" * 1_000_000)], assistant(HOSTILE), at=2, extra={"user": HOSTILE}),
        chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.invalid/a.png"}}]}], at=9),
    ]
    with opened(tmp_path, flows) as address, page_of(browser, address) as page:
        page.locator(".row").nth(1).click()
        page.locator(".block-tool_call").first.wait_for()
        assert page.locator(".block").count() < 500
        assert "\u2400" in page.locator(".block-user pre").first.inner_text()
        page.get_by_role("link", name="Diff with the previous call").first.click()
        page.get_by_role("heading", name="Diff of two calls").wait_for()
        page.get_by_label("Search text").fill("onerror")
        page.keyboard.press("Enter")
        page.get_by_role("list", name="Search results").get_by_role("link").first.click()
        call(page, 1).get_by_role("link", name="Replay").click()
        page.get_by_role("form", name="Replay with a change").wait_for()
        page.goto(page.url.partition("#")[0])
        page.locator(".row").first.click()
        page.get_by_text("https://example.invalid/a.png").wait_for()
        assert 0 == page.locator("img, script[src^='http'], iframe").count()


COUNTED = """async ([step]) => {
    const rows = document.querySelector('ul.rows'), list = rows.parentElement;
    const made = [];
    let most = 0, added = 0;
    new MutationObserver((changes) => {
        for (const change of changes) added += change.addedNodes.length;
        most = Math.max(most, rows.childElementCount);
    }).observe(rows, {childList: true});
    const tall = rows.firstElementChild.getBoundingClientRect().height;
    while (list.scrollTop + list.clientHeight < list.scrollHeight - 1) {
        added = 0;
        list.scrollTop += step * tall;
        while (!list.querySelector(`[data-index="${Math.floor(list.scrollTop / tall)}"]`)) await new Promise(requestAnimationFrame);
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        made.push(added);
    }
    return {made, most, visible: Math.ceil(list.clientHeight / tall)};
}"""
"""Scrolls through the whole list: the rows that each step added, and the most rows that were elements at a time."""


@second_try(BROWSER)
def test_a_long_list_is_windowed(browser: Browser, tmp_path: Path) -> None:
    """Of a thousand threads only those on display are elements, a step makes only the rows that come into view, with one layout or two.
    The last one is reached with one key.
    """
    flows = [chat([user(f"thread number {n}")], at=n) for n in range(1000)]
    with opened(tmp_path, flows) as address, page_of(browser, address) as page:
        page.get_by_text("1,000 threads").wait_for()
        page.locator(".row", has_text="thread number 999").wait_for()
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        before = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        counted = page.evaluate(COUNTED, [3])
        after = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        steps = len(counted["made"])
        assert counted["most"] <= counted["visible"] + 2 * 8 + 2
        assert sum(counted["made"]) <= 1000
        loads = 1000 // 100  # a page of rows that arrives late adds what came into view meanwhile
        assert sum(added > 3 + 1 for added in counted["made"]) <= loads
        assert after["LayoutCount"] - before["LayoutCount"] <= 2 * (steps + loads)  # for each of its rows as for a step
        page.locator(".row").first.focus()
        page.keyboard.press("Home")
        page.locator(".row:focus", has_text="thread number 999").wait_for()
        page.keyboard.press("End")
        page.locator(".row:focus", has_text="thread number 0gpt-4o").wait_for()
        assert page.locator(".row").count() < 80
