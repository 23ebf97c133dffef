"""The search of a user's patterns in a process of its own."""

from __future__ import annotations

import sys

import pytest

from azure_openai_proxy.inspection.sharing import guarded, redact


def test_patterns_find_the_same() -> None:
    """Matches are replaced as by a redactor without the other process, empty ones and characters of any kind too."""
    choice = redact.parse([r"EMP-\d+", "x*", "[Üü]ber\U0001f600?"])
    text = "EMP-1 and EMP-22, xx Über\U0001f600 and über, EMP-1"
    with guarded.guarded(choice) as bounded:
        assert redact.Redactor(choice).text(text) == redact.Redactor(bounded).text(text)


def test_a_search_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The redactor gets an error, and so does a search after it."""
    monkeypatch.setattr(guarded, "LONGEST_TIME", 0.1)
    with guarded.guarded(redact.parse([r"(\w|.)+\x00"])) as bounded:
        for _ in range(2):
            with pytest.raises(guarded.TooSlow):
                redact.Redactor(bounded).text("a" * 100)


def test_no_process_is_started_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of kinds need none, and a standalone program cannot start one."""
    for choice, frozen in ((redact.parse(["emails"]), False), (redact.parse(["x"]), True)):
        monkeypatch.setattr(sys, "frozen", frozen, raising=False)
        with guarded.guarded(choice) as bounded:
            assert choice is bounded
