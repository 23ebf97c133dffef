"""Each action of the inspector's page as a person does it: on live traffic and on a file, at 360 and 1,400 pixels, dark and light, with the
mouse and on the keyboard alone.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import agent_session
import openai
import pytest

from azure_simulator import Delay, Simulator
from support.conversations import user
from support.inspector import TITLE, session
from support.inspector_page import CHROMIUM, LOOKS, Hand, ask, call, chromium, opened, page_of, site
from support.marks import BROWSER, second_try
from support.mitmweb import mitmweb
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from support.mitmweb import Web

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `apt-get install chromium` brings it"), second_try(BROWSER)]


class Session(NamedTuple):
    """What the page shows of an agent's session."""

    address: str
    title: str
    child: str  # the title of the subagent
    broken: int  # the number of the call that found the prompt cache broken
    removed: str
    added: str


class Case(NamedTuple):
    page: Page
    hand: Hand
    session: Session
    is_live: bool


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
    """mitmweb that proxies, after the session of `make web`."""
    home = tmp_path_factory.mktemp("live")
    with mitmweb(home, home / "confdir", 9, azure_openai_endpoint=azure.http_url, azure_openai_token=azure.key) as web:
        with openai.OpenAI(base_url=f"{web.proxy.url}/v1", api_key="x") as client:
            agent_session.run(client, azure)
        yield web


@pytest.fixture(scope="module")
def on_live(live: Web) -> Session:
    return Session(site(live), agent_session.TASK, agent_session.SEARCH, 4, "10:00", "10:01")


@pytest.fixture(scope="module")
def on_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A saved session, in a mitmweb without an endpoint and without a port for clients."""
    with opened(tmp_path_factory.mktemp("file"), session()) as address:
        yield Session(address, TITLE, "Find all callers of parse", 3, "2026-11-28", "2026-11-29")


CASES = [("on_file", LOOKS[0], False), ("on_file", LOOKS[1], True), ("on_live", LOOKS[0], True), ("on_live", LOOKS[1], False)]
"""Each action at both widths, in both schemes, on both sources, with the mouse and on the keyboard."""


@pytest.fixture(params=CASES, ids=str)
def case(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Case]:
    source, look, keyboard = request.param
    session: Session = request.getfixturevalue(source)
    with page_of(browser, session.address, look) as page:
        yield Case(page, Hand(page, keyboard=keyboard), session, source == "on_live")


def open_thread(case: Case, title: str = "") -> None:
    title = title or case.session.title
    case.hand.press(case.page.locator(".row", has_text=title).first)
    case.page.locator("h2", has_text=title).wait_for()


def test_threads_are_read(case: Case) -> None:
    """The list has the thread above its subagent; both are opened, and the way back leads over the parent to all threads."""
    page, hand, session, _ = case
    rows = page.locator(".row").all_inner_texts()
    parent = next(place for place, text in enumerate(rows) if session.title in text)
    assert session.child in rows[parent + 1]
    open_thread(case)
    hand.press(page.get_by_role("region", name="Subagents").get_by_role("link", name=session.child))
    page.locator("h2", has_text=session.child).wait_for()
    hand.press(page.get_by_role("link", name=session.title))
    page.locator("h2", has_text=session.title).wait_for()
    hand.press(page.get_by_role("link", name="All threads"))
    page.locator(".row", has_text=session.title).wait_for()


def test_a_thread_is_read(case: Case) -> None:
    """The time axis leads to a call, with its route, tokens and context; results are beside their tool calls."""
    page, hand, *_ = case
    open_thread(case)
    assert "read_file" in page.locator(".bar.tool").first.inner_text()
    hand.press(page.get_by_role("region", name="Waterfall of calls and tool calls").get_by_role("link", name="call 2"))
    page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'Call 2'")
    shown = call(page, 2).inner_text()
    assert [] == [
        expected for expected in ("gpt-4o → ", "status 200", " cached, ", "Context (tokens): system", "Latency: ") if expected not in shown
    ]
    assert "def parse" in call(page, 1).locator(".result pre").first.inner_text()


def test_the_cause_of_a_broken_cache_is_read(case: Case) -> None:
    """It opens below the call, with the changed words marked."""
    page, hand, session, _ = case
    open_thread(case)
    broken = call(page, session.broken)
    hand.press(broken.get_by_text("Cache broken: the system prompt changed"))
    broken.locator(".broken ins", has_text=session.added).wait_for()
    assert session.removed in broken.locator(".broken del").first.inner_text()


def test_two_calls_are_compared(case: Case) -> None:
    """A call with the one before it, and any two that are chosen."""
    page, hand, session, _ = case
    open_thread(case)
    hand.press(call(page, session.broken).get_by_role("link", name="Diff with the previous call"))
    page.get_by_role("heading", name="Diff of two calls").wait_for()
    request = page.get_by_role("region", name="Request")
    assert (True, True) == (
        session.removed in " ".join(request.locator("del").all_inner_texts()),
        session.added in " ".join(request.locator("ins").all_inner_texts()),
    )
    hand.press(page.get_by_role("navigation").get_by_role("link", name="Compare"))
    page.get_by_role("heading", name="Compare two calls").wait_for()
    hand.choose(page.get_by_label("Old call"), session.child)
    hand.choose(page.get_by_label("New call"), session.title[:40])
    hand.press(page.get_by_role("main").get_by_role("button", name="Compare"))
    page.get_by_role("region", name="Request").locator("ins").first.wait_for()


def test_everything_said_is_found(case: Case) -> None:
    """A result of a tool, restricted by filters; the hit leads to its thread."""
    page, hand, session, _ = case
    hand.fill(page.get_by_label("Search text"), "one caller")
    hand.press(page.get_by_role("button", name="Search"))
    results = page.get_by_role("list", name="Search results")
    results.locator("mark", has_text="one caller").first.wait_for()
    hand.press(page.get_by_text("Filters"))
    hand.fill(page.get_by_label("Status"), "429")
    hand.press(page.get_by_role("button", name="Search"))
    page.get_by_text("0 calls").wait_for()
    hand.fill(page.get_by_label("Status"), "2xx")
    hand.fill(page.get_by_label("Model", exact=True), "gpt-4o")
    hand.choose(page.get_by_label("Repaired"), "no")
    hand.press(page.get_by_role("button", name="Search"))
    hand.press(results.get_by_role("link", name=session.child).first)
    page.locator("h2", has_text=session.child).wait_for()


def test_a_thread_is_shared(case: Case, tmp_path: Path) -> None:
    """The preview shows the file without the texts that a person chose to remove, and the saved one is the same."""
    page, hand, session, _ = case
    open_thread(case)
    hand.press(page.get_by_role("link", name="Share"))
    page.frame_locator("iframe[title='Preview of the shared file']").get_by_text(session.title).first.wait_for()
    hand.fill(page.get_by_label("Patterns to redact"), "caller")
    hand.press(page.get_by_label("Paths"), "Space")
    hand.choose(page.get_by_label("Format"), "Markdown")
    hand.press(page.get_by_role("button", name="Preview"))
    preview = page.locator(".preview pre")
    preview.get_by_text("semicolons").wait_for()
    page.get_by_text("Removed: ").wait_for()
    assert "caller" not in preview.inner_text()
    with page.expect_download() as download:
        hand.press(page.get_by_role("link", name="Save file"))
    download.value.save_as(tmp_path / "saved.md")
    saved = (tmp_path / "saved.md").read_text()
    assert ("thread.md", True, False) == (download.value.suggested_filename, session.title in saved, "caller" in saved)


def test_a_call_is_replayed_with_a_change(case: Case, azure: Simulator) -> None:
    """Prompt, deployment and parameters are edited; the answer grows while it arrives; both are side by side at the end. Without an
    endpoint the page says that one is missing.
    """
    page, hand, session, is_live = case
    if is_live:
        azure.faults.next(Delay(0.1, chunk="each"))
    open_thread(case, session.child)
    hand.press(call(page, 1).get_by_role("link", name="Replay"))
    if not is_live:
        page.get_by_role("alert").get_by_text("azure_openai_endpoint").wait_for()
        assert page.get_by_role("button", name="Replay").is_disabled()
        return
    hand.fill(page.get_by_label("1: user"), "one two three four five six seven eight nine ten")
    hand.fill(page.get_by_label("Deployment").last, "gpt-4o-mini")
    hand.press(page.get_by_text("Parameters", exact=True))
    hand.fill(page.get_by_label("Parameters (JSON)"), '{"temperature": 0.5, "stream": true}')
    hand.press(page.get_by_role("button", name="Replay"))
    side = page.get_by_role("region", name="Replay", exact=True)
    page.locator(".streaming", has_text="one two").wait_for()
    side.get_by_text("gpt-4o-mini").wait_for()
    assert "You said: one two three four five six seven eight nine ten" in side.inner_text()
    assert "search" in page.get_by_role("region", name="Original").inner_text()
    sent = azure.requests[-1]
    assert "/deployments/gpt-4o-mini/" in sent.path
    assert 0.5 == json.loads(sent.body)["temperature"]


def test_requests_and_answers_are_held(case: Case, live: Web) -> None:
    """The next request of a model and the next answer of a thread wait until a person has edited them. Where no request can arrive, the
    page says so.
    """
    page, hand, *_ = case
    if not case.is_live:
        open_thread(case)
        hand.press(page.get_by_role("button", name="Hold next request"))
        page.get_by_text("mitmweb has no open port for clients").wait_for()
        hand.press(page.get_by_role("link", name="Breakpoints"))
        page.get_by_role("main").get_by_text("mitmweb has no open port for clients").wait_for()
        hand.press(page.get_by_role("button", name="Remove"))
        page.get_by_role("list", name="Breakpoints").get_by_text("none").wait_for()
        return
    title = f"hold me {hand.keyboard}"
    messages = [user(title)]
    messages.append(ask(live, messages))
    said: list[str] = []
    page.locator(".row", has_text=title).first.wait_for()
    open_thread(case, title)
    hand.press(page.get_by_role("button", name="Hold next answer"))
    page.get_by_text("The next answer of this thread will be held").wait_for()
    hand.press(page.get_by_role("link", name="Breakpoints"))
    hand.choose(page.get_by_label("Hold the next"), "request")
    hand.fill(page.get_by_label("Of the model"), "gpt-4o-mini")
    hand.press(page.get_by_role("button", name="Hold", exact=True))
    page.get_by_text("next request of model gpt-4o-mini").wait_for()
    later = [*messages, user("hold me again")]
    for on, edited, asked in (
        ("request", {"model": "gpt-4o-mini", "messages": [user("edited")]}, {"messages": [user("other")], "model": "gpt-4o-mini"}),
        ("answer", {"choices": [{"message": {"content": "changed"}}]}, {"messages": later}),
    ):
        asking = threading.Thread(target=lambda asked=asked: said.append(ask(live, **asked)["content"]))
        asking.start()
        held = page.get_by_role("form", name=f"Held {on}")
        hand.fill(held.get_by_label("Body"), json.dumps(edited))
        hand.press(held.get_by_role("button", name="Go on"))
        asking.join(PATIENCE)
    page.get_by_text("nothing is held").wait_for()
    assert ["You said: edited", "changed"] == said


def test_updates_leave_the_focus(browser: Browser, live: Web) -> None:
    """A call that ends while a person edits a held request does not take the focus from the text."""
    said: list[str] = []
    with page_of(browser, site(live), LOOKS[0]) as page:
        page.get_by_role("link", name="Breakpoints").click()
        page.get_by_label("Of the model").fill("gpt-4o-mini")
        page.get_by_role("button", name="Hold", exact=True).click()
        page.get_by_text("next request of model gpt-4o-mini").wait_for()
        asking = threading.Thread(target=lambda: said.append(ask(live, [user("first")], model="gpt-4o-mini")["content"]))
        asking.start()
        held = page.get_by_role("form", name="Held request")
        held.get_by_label("Body").focus()
        page.keyboard.press("Control+A")
        with page.expect_response(lambda response: "/api/breakpoints?" in response.url) as updated:
            ask(live, [user("another call")])
        updated.value.finished()
        page.evaluate("new Promise(requestAnimationFrame)")
        page.keyboard.insert_text(json.dumps({"model": "gpt-4o-mini", "messages": [user("second")]}))
        held.get_by_role("button", name="Go on").click()
        asking.join(PATIENCE)
    assert ["You said: second"] == said


def test_a_streamed_answer_is_held(case: Case, live: Web) -> None:
    """The client gets the head at once and the events as a person edited them, all at the end; the next stream is not held."""
    if not case.is_live:
        pytest.skip("no stream arrives")
    page, hand, *_ = case
    message: Any = {"role": "user", "content": "a stream"}
    with openai.OpenAI(base_url=f"{live.proxy.url}/v1", api_key="x") as client:
        hand.press(page.get_by_role("link", name="Breakpoints"))
        hand.choose(page.get_by_label("Hold the next"), "answer")
        hand.fill(page.get_by_label("Of the model"), "gpt-4o")
        hand.press(page.get_by_role("button", name="Hold", exact=True))
        page.get_by_text("next answer of model gpt-4o").wait_for()
        with client.chat.completions.create(model="gpt-4o", messages=[message], stream=True) as stream:
            held = page.get_by_role("form", name="Held answer")
            body = held.get_by_label("Body")
            assert "data: [DONE]" in body.input_value()
            hand.fill(body, body.input_value().replace("You", "Nobody"))
            hand.press(held.get_by_role("button", name="Go on"))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert "Nobody said: a stream" == text
        page.get_by_text("nothing is held").wait_for()
        with client.chat.completions.create(model="gpt-4o", messages=[message], stream=True) as stream:
            assert "You said: a stream" == "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
