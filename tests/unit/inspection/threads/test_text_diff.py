"""The difference of two texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.inspection.threads import text_diff
from azure_openai_proxy.inspection.threads.text_diff import Piece


@given(st.text("ab \n1-:", max_size=60), st.text("ab \n1-:", max_size=60))
def test_the_pieces_are_the_texts(old: str, new: str) -> None:
    """Equal and deleted pieces are the old text, equal and inserted ones the new text."""
    pieces = text_diff.compare(old, new)
    assert old == "".join(piece.text for piece in pieces if piece.change != "insert")
    assert new == "".join(piece.text for piece in pieces if piece.change != "delete")


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        ("", "", []),
        ("same", "same", [Piece("equal", "same")]),
        ("a b c", "a x c", [Piece("equal", "a "), Piece("delete", "b"), Piece("insert", "x"), Piece("equal", " c")]),
        (
            "on 2026-11-28 now",
            "on 2026-11-29 now",
            [
                Piece("equal", "on "),
                Piece("delete", "2026-11-28", volatile=True),
                Piece("insert", "2026-11-29", volatile=True),
                Piece("equal", " now"),
            ],
        ),
        ("a ", "a call_abcdefgh12", [Piece("equal", "a "), Piece("insert", "call_abcdefgh12", volatile=True)]),
    ],
)
def test_words(old: str, new: str, pieces: list[Piece]) -> None:
    """Whole words differ, and dates and ids are marked as volatile."""
    assert pieces == text_diff.compare(old, new)


def test_long_texts() -> None:
    """A long difference is compared by line, and a very long one is replaced as a whole."""
    middle = text_diff.compare("a " * 500 + "\nsame\n" + "b " * 500, "c " * 500 + "\nsame\n" + "d " * 500)
    assert Piece("equal", "same\n") in middle
    old, new = "".join(f"a{n}\n" for n in range(2000)), "".join(f"b{n}\n" for n in range(2000))
    assert [Piece("delete", old[:-1]), Piece("insert", new[:-1]), Piece("equal", "\n")] == text_diff.compare(old, new)
    long = "x" * 500
    assert [("equal", 100), ("delete", 400), ("insert", 400)] == [
        (piece.change, len(piece.text)) for piece in text_diff.compare(long, long[:300] + "y" * 200)
    ]


@pytest.mark.parametrize("text", ["2026-11-28T10:00:00Z", "10:01:02", "0123456789abcdef0123", "resp_abcdefgh1", " 1795860000 "])
def test_volatile_texts(text: str) -> None:
    """Dates, times and ids are volatile."""
    assert text_diff.is_volatile(text)
    assert not text_diff.is_volatile(f"{text} word")
