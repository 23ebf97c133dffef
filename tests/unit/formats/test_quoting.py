"""Escaping of untrusted text for shells, Python and terminals."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.formats import quoting

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_python_literal_round_trip(value: object) -> None:
    """A literal evaluates to the same value and has no control characters."""
    written = quoting.python(value)
    assert value == ast.literal_eval(written)
    assert quoting.terminal(written) == written


def test_long_containers_get_lines() -> None:
    """Long containers take several lines and short ones take one; deep levels are not indented, so the size stays linear."""
    assert "{'a': [1, 2]}" == quoting.python({"a": [1, 2]})
    assert "{\n    'a': 'xxx" in quoting.python({"a": "x" * 200})
    deep = json.loads("[" * 80 + json.dumps(["x" * 10] * 1000) + "]" * 80)
    assert len(quoting.python(deep)) < 2 * len(repr(deep))


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("-inf")]}, json.loads("[" * 200 + "]" * 200)], ids=["nan", "inf", "deep"])
def test_a_value_without_a_literal_is_refused(value: object) -> None:
    """A value without a valid literal is refused."""
    with pytest.raises(ValueError, match=r"finite|deeply"):
        quoting.python(value)


def test_cause() -> None:
    """The first line that is not blank, else the type, without the password in either spelling."""
    assert "no *** or ***" == quoting.cause(ValueError("\n\nno p%40s or p@s\nmore"), "p%40s")
    assert "OSError" == quoting.cause(OSError(), None)
    assert 300 == len(quoting.cause(OSError("x" * 999), ""))


@given(st.text(st.characters(codec=None)))
def test_a_terminal_gets_no_control_characters(text: str) -> None:
    """Control characters are escaped, except tabs and newlines; on one line those are escaped too."""
    shown = quoting.terminal(text)
    assert [] == [char for char in shown if not char.isprintable() and not char.isspace() and quoting.terminal(char) != char]
    assert quoting.is_safe(shown)
    assert text != shown or quoting.is_safe(text)
    assert not {"\n", "\t", "\x1b", "\r", "\x9b", "\x7f"} & set(quoting.line(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\nb", "a\\r\nb"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
        ("é\tü", "é\tü"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    """Characters that a terminal interprets are shown as Python writes them."""
    assert shown == quoting.terminal(text)
    assert shown.replace("\n", r"\n").replace("\t", r"\t") == quoting.line(text)


def test_a_word_for_a_shell_has_no_control_characters() -> None:
    """A shell word with control characters is refused, because a terminal would act on them."""
    assert "'a b'" == quoting.shell("a b")
    with pytest.raises(ValueError, match="control characters"):
        quoting.shell("\x1b")
