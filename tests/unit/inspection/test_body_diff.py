"""The difference of two bodies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.inspection.body_diff import Splice


@given(st.binary(max_size=60), st.binary(max_size=30), st.binary(max_size=30), st.binary(max_size=60))
def test_a_splice_gives_the_body_back(head: bytes, old: bytes, new: bytes, tail: bytes) -> None:
    """Undoing a splice restores the old body for any replacement."""
    before, after = head + old + tail, head + new + tail
    splice = Splice.between(before, after)
    assert before == (splice.undo(after) if splice else after)


def test_a_splice_holds_only_the_difference() -> None:
    """A splice stores the range that differs, not the body."""
    assert Splice(10, 3, b"gpt-4o") == Splice.between(b'{"model":"gpt-4o"}' + b" \n", b'{"model":"prod"}' + b" \n")._replace(tail=3)  # type: ignore[union-attr]
