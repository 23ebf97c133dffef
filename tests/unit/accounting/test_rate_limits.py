"""The rate limits that Azure's headers tell."""

from __future__ import annotations

import pytest

from azure_openai_proxy.accounting.rate_limits import NO_REMAINING, Remaining, updated


@pytest.mark.parametrize(
    ("tokens", "expected"), [("12", 12), ("0", 0), ("", 7), ("-1", 7), ("1" * 16, 7), ("\u0661", 7), ("1.5", 7), (" 5", 7)]
)
def test_an_invalid_header_changes_nothing(tokens: str, expected: int) -> None:
    """Only a bounded number is taken."""
    assert Remaining(expected, 3) == updated(Remaining(7, 8), [(tokens.encode(), b"3")])


def test_no_header() -> None:
    """Nothing is known before the first header, and a response without headers changes nothing."""
    assert [NO_REMAINING, Remaining(7, 8)] == [updated(NO_REMAINING, [(b"", b"")]), updated(Remaining(7, 8), [(b"", b"")])]


def test_several_responses() -> None:
    """The last valid number counts, of each header for itself."""
    assert Remaining(4, 1) == updated(Remaining(7, 8), [(b"9", b"9"), (b"4", b"2"), (b"x", b"1")])
