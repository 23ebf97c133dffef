"""The difference of two calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure_openai_proxy.inspection.threads import diff
from support.conversations import assistant, chat, responses, tool_call, user

if TYPE_CHECKING:
    import pytest

SYSTEM = {"role": "system", "content": "be good"}


def test_two_chats() -> None:
    """Each block is equal, changed, inserted or deleted, and a changed one has its pieces."""
    tools = {"tools": [{"type": "function", "function": {"name": "a"}}], "functions": {"x": 1}, "temperature": 0}
    one = chat([SYSTEM, user("one"), assistant("fine", tool_call("c1"))], extra=tools)
    image = {"role": "user", "content": [{"type": "text", "text": "see"}, {"image_url": "data:image/png;base64,AA"}]}
    other = chat(
        [SYSTEM, user("two"), assistant("fine", tool_call("c1")), image], model="o3", extra={"response_format": {"type": "json_object"}}
    )
    found = diff.compare(one, other)
    assert [
        ("model", None, "changed"),
        ("parameters", None, "deleted"),
        ("tools", None, "deleted"),
        ("response_format", None, "inserted"),
        ("system", 0, "equal"),
        ("message", 1, "changed"),
        ("message", 2, "equal"),
        ("message", 3, "inserted"),
        ("answer", None, "equal"),
    ] == [(entry["block"], entry["index"], entry["change"]) for entry in found]
    assert "[image, 24 characters]" in found[7]["pieces"][0]["text"]
    assert "pieces" not in found[4]


def test_two_responses() -> None:
    """Instructions are the system block, and the format is that of `text`."""
    one = responses("one", [], extra={"instructions": "be good", "text": {"format": {"type": "text"}}})
    other = responses("one", [], extra={"text": 5})
    found = {(entry["block"], entry["index"]): entry["change"] for entry in diff.compare(one, other)}
    assert ("deleted", "deleted", "equal") == (found["response_format", None], found["system", None], found["message", 0])


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Very many messages are compared in order, and very long or very many blocks are replaced as a whole."""
    monkeypatch.setattr(diff, "MOST_MESSAGES", 2)
    monkeypatch.setattr(diff, "MOST_COMPARED", 1)
    monkeypatch.setattr(diff, "LONGEST_TEXT", 20)
    found = diff.compare(chat([user(f"a{n} same") for n in range(3)]), chat([user(f"b{n} same") for n in range(4)]))
    changes = [(entry["index"], entry["change"], len(entry["pieces"])) for entry in found if entry["block"] == "message"]
    assert [(0, "changed", 4), (1, "changed", 2), (2, "changed", 2), (3, "inserted", 1)] == changes
    aligned = diff.compare(chat([user("a"), user("b")]), chat([user("b"), user("c")]))
    assert ["deleted", "equal", "inserted"] == [entry["change"] for entry in aligned if entry["block"] == "message"]


def test_all_differences_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed blocks after the limit have no texts."""
    monkeypatch.setattr(diff, "LONGEST", 100)
    one, other = (chat([user(f"{letter * 30} {number}") for number in range(4)]) for letter in "ab")
    changed = [entry for entry in diff.compare(one, other) if entry["change"] != "equal"]
    lengths = [sum(len(piece["text"]) for piece in entry["pieces"]) for entry in changed]
    assert (4, 0) == (len(lengths), lengths[-1])
    assert sum(lengths) <= 200
