"""The equal beginning and end of two sequences."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azure_openai_proxy.formats.sequences import common_prefix, common_suffix

LISTS = st.lists(st.integers(0, 2), max_size=12)


@given(one=LISTS, other=LISTS)
@example(one=[], other=[1])
@example(one=[1, 2], other=[1, 2, 3])
@example(one=[1, 2], other=[1, 3])
@example(one=[1, 2, 3, 4], other=[1, 2, 3, 5])
def test_equal_items(one: list[int], other: list[int]) -> None:
    """The prefix is the longest one, and the suffix the longest one of the rest."""

    def equal(first: list[int], second: list[int]) -> int:
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))

    start = common_prefix(one, other)
    assert equal(one, other) == start
    rest = one[start:][::-1], other[start:][::-1]
    assert equal(*rest) == common_suffix(one, other, min(map(len, rest)))


@pytest.mark.parametrize("kind", [str, bytes])
def test_texts(kind: type[str | bytes]) -> None:
    """Texts and bytes are compared like lists."""
    one, other = ("a b c", "a x c") if kind is str else (b"a b c", b"a x c")
    assert (2, 2) == (common_prefix(one, other), common_suffix(one, other, 3))
