"""The mitmproxy commands that show and share threads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import exceptions
from mitmproxy.addons import view
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.config import settings
from azure_openai_proxy.inspection.sharing import guarded
from azure_openai_proxy.inspection.thread_commands import ThreadCommands
from support.conversations import assistant, chat, user, websocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "configured-key-0123"
SETTINGS = settings.Settings(backends=(Backend(name="a", base=Base("https", "r.openai.azure.com", 443), token=KEY, apiversion="v1"),))
SYSTEM = {"role": "system", "content": "be good"}


@pytest.fixture
def context() -> Iterator[taddons.context]:
    with taddons.context(ThreadCommands(lambda: SETTINGS), view.View()) as context:
        yield context


def call(context: taddons.context, name: str, *arguments: object) -> Any:
    return context.master.commands.call(name, *arguments)


def conversation(context: taddons.context) -> tuple[Any, Any]:
    """Two calls of a thread in the list, of which the second one missed the cache."""
    first = chat([SYSTEM, user(f"one {KEY}")], read=2000)
    second = chat([{"role": "system", "content": "be bad"}, user(f"one {KEY}"), assistant("fine"), user("two")], at=5, read=2100)
    context.master.addons.get("view").add([first, second])
    return first, second


def test_threads(context: taddons.context) -> None:
    """The overview has all flows of the list, and follows it."""
    first, second = conversation(context)
    assert "2 calls" in call(context, "azure.threads")
    context.master.addons.get("view").remove([second])
    assert "1 call ·" in call(context, "azure.threads")
    first.response.timestamp_end += 1
    assert "2.0 s" in call(context, "azure.threads")
    assert KEY not in call(context, "azure.threads")


def test_one_thread(context: taddons.context) -> None:
    """The conversation of the focused flow, without keys."""
    first, _ = conversation(context)
    text = call(context, "azure.thread", [first])
    assert "── user\ntwo" in text
    assert KEY not in text
    with pytest.raises(exceptions.CommandError, match="None of these flows is a chat"):
        call(context, "azure.thread", [tflow.tflow()])


def test_without_a_list(context: taddons.context) -> None:
    """In mitmdump, which has no list of flows, the given ones are used."""
    context.master.addons.remove(context.master.addons.get("view"))
    assert "── user\none" in call(context, "azure.thread", [chat([user("one")])])


def test_cache(context: taddons.context) -> None:
    """The cause of a miss, or the tokens."""
    first, second = conversation(context)
    unknown = chat([user("other")], at=9, read=None)
    context.master.addons.get("view").add([unknown])
    assert [
        "cache: 0 tokens, 0 expected",
        "cache: 0 of 1,920 tokens: the system prompt changed",
        "cache: unknown tokens, 0 expected",
    ] == call(context, "azure.cache", [first, second, unknown, tflow.tflow()]).splitlines()


def test_a_websocket(context: taddons.context) -> None:
    """Its commands are about all its threads and responses, and follow new messages."""
    one = websocket(("one two", "uno"), ("three four", "tres"))
    assert one.websocket
    messages, one.websocket.messages = one.websocket.messages, one.websocket.messages[:3]
    context.master.addons.get("view").add([one])
    assert "uno" in call(context, "azure.thread", [one])
    one.websocket.messages = messages
    assert "tres" in call(context, "azure.thread", [one])
    assert 2 == len(call(context, "azure.cache", [one]).splitlines())


def test_diff(context: taddons.context) -> None:
    """The blocks of two calls, with deleted and inserted words."""
    first, second = conversation(context)
    text = call(context, "azure.diff", [first, second])
    assert "  model: equal\n" in text
    assert "≠ system 0: changed\nsystem\nbe [-good-]{+bad+}\n" in text
    assert KEY not in text
    with pytest.raises(exceptions.CommandError, match="Choose two flows"):
        call(context, "azure.diff", [first])


def test_a_difference_within_two_keys(context: taddons.context) -> None:
    """The parts in which two keys differ do not show the keys."""
    one, other = (f"sk-proj-{'Ab1' * 8}{end}" for end in ("Xy7Xy7Xy7", "Qr5Qr5Qr5"))
    text = call(context, "azure.diff", [chat([user(f"use {one} now")]), chat([user(f"use {other} now")])])
    assert "Ab1" not in text
    assert "use [key [-1-]{+2+}] now" in text


def test_long_differences_are_shortened(context: taddons.context) -> None:
    """Long equal texts are cut in the middle, very long changed ones at the end."""
    one, two = (chat([user("same " * 200 + text * 9000)]) for text in ("a ", "b "))
    text = call(context, "azure.diff", [one, two])
    assert " … " in text
    long = call(context, "azure.diff", [chat([user("x" * 30_000)]), chat([])])
    assert "x…-]" in long
    assert len(long) < 21_000


@pytest.mark.parametrize("format", ["html", "jsonl", "markdown"])
def test_share(context: taddons.context, format: str, tmp_path: Path) -> None:
    """A thread is written to a file without keys, and the removed texts are counted."""
    first, _ = conversation(context)
    file = tmp_path / "thread"
    written = call(context, "azure.share", format, [first], str(file), "b[ae]d?,two")
    assert re.fullmatch(rf"Written to {re.escape(str(file))}; removed: (\d patterns, 1 key|1 key, \d patterns)\.", written)
    text = file.read_text()
    assert KEY not in text
    assert "one" in text
    if format == "jsonl":
        assert 5 == len(json.loads(text)["messages"])


def test_what_cannot_be_shared(context: taddons.context, tmp_path: Path) -> None:
    """A wrong pattern and a missing folder are errors, and nothing may have to be removed."""
    flow = chat([user("one")])
    context.master.addons.get("view").add([flow])
    assert call(context, "azure.share", "markdown", [flow], str(tmp_path / "x")).endswith("removed: nothing.")
    for path, redacted, message in ((tmp_path / "none" / "x", "", "cannot be written"), (tmp_path / "x", "(", "no regular expression")):
        with pytest.raises(exceptions.CommandError, match=message):
            call(context, "azure.share", "html", [flow], str(path), redacted)
    assert ["html", "jsonl", "markdown"] == call(context, "azure.share.formats")


def test_a_pattern_without_an_end_stops_nothing(context: taddons.context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with an error, and writes no file."""
    monkeypatch.setattr(guarded, "LONGEST_TIME", 0.1)
    context.master.addons.get("view").add([flow := chat([user("a" * 100)])])
    with pytest.raises(exceptions.CommandError, match="takes too long"):
        call(context, "azure.share", "html", [flow], str(tmp_path / "x"), r"(\w|.)+\x00")
    assert not (tmp_path / "x").exists()


def test_they_have_names_and_help(context: taddons.context) -> None:
    """mitmweb accepts only letters and dots in the name of a command."""
    known = {name: command for name, command in context.master.commands.commands.items() if name.startswith("azure.")}
    assert {"azure.threads", "azure.thread", "azure.diff", "azure.cache", "azure.share", "azure.share.formats"} == set(known)
    assert all(command.help and name.replace(".", "").isalpha() for name, command in known.items())
