"""Bounds on the values of metric labels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.accounting.label_bounds import OTHER, LabelBounds

MODEL = ("model",)


def test_further_values_are_other() -> None:
    """A label has its first values; all later ones are `other`, and the known ones stay."""
    bounds = LabelBounds(3)
    assert [("0",), ("1",), ("2",), (OTHER,), (OTHER,)] == [bounds.values(MODEL, (str(number),)) for number in range(5)]
    assert ("1",) == bounds.values(MODEL, ("1",))
    assert ("9",) == bounds.values(("backend",), ("9",))  # each label counts by itself


def test_failed_calls_take_half() -> None:
    """Names that only fail fill half of the values, so that names that work still get theirs."""
    bounds = LabelBounds(4)
    assert [("0",), ("1",), (OTHER,)] == [bounds.values(MODEL, (str(number),), failed=True) for number in range(3)]
    assert [("gpt-4o",), ("gpt-5",), (OTHER,)] == [bounds.values(MODEL, (name,)) for name in ("gpt-4o", "gpt-5", "o3")]
    assert ("gpt-4o",) == bounds.values(MODEL, ("gpt-4o",), failed=True)
    assert ("a",) == LabelBounds(1).values(MODEL, ("a",), failed=True)


def test_fixed_values() -> None:
    """Labels with the proxy's own values, such as the types of tokens, keep all of them under the smallest bound."""
    bounds = LabelBounds(1)
    kinds = [(kind,) for kind in ("input", "cached_input", "output")]
    assert kinds == [bounds.values(("type",), kind, failed=True) for kind in kinds]


def test_missing_and_numbers() -> None:
    """An unknown value is empty and takes no place, and a number becomes text."""
    bounds = LabelBounds(1)
    assert ("", "") == bounds.values(("model", "status"), (None, ""))
    assert ("200",) == bounds.values(("status",), (200,))


@given(st.text(st.characters(), max_size=300))
def test_values_are_short_and_printable(text: str) -> None:
    """Every value can be encoded, is on one line and has a bounded length."""
    (value,) = LabelBounds(5).values(MODEL, (text,))
    assert value.encode().decode() == value
    assert len(value) <= 6 * 120
    assert value == "".join(value.splitlines())
    assert not text or value
