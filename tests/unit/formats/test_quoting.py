"""Quoting: what is written is shown or read back as it was, and never acts."""

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
def test_python_reads_back_what_was_written(value: object) -> None:
    """A literal is the value again, with no character in it that a terminal acts on."""
    written = quoting.python(value)
    assert value == ast.literal_eval(written)
    assert quoting.terminal(written) == written


def test_long_containers_get_lines() -> None:
    """Short ones stay on one; deep ones are not laid out, so the indentation cannot outgrow the value."""
    assert "{'a': [1, 2]}" == quoting.python({"a": [1, 2]})
    assert "{\n    'a': 'xxx" in quoting.python({"a": "x" * 200})
    deep = json.loads("[" * 80 + json.dumps(["x" * 10] * 1000) + "]" * 80)
    assert len(quoting.python(deep)) < 2 * len(repr(deep))


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("-inf")]}, json.loads("[" * 200 + "]" * 200)], ids=["nan", "inf", "deep"])
def test_what_has_no_literal_is_refused(value: object) -> None:
    """Python would not read it back."""
    with pytest.raises(ValueError, match=r"finite|deeply"):
        quoting.python(value)


@given(st.text(st.characters(codec=None)))
def test_a_terminal_gets_no_control_characters(text: str) -> None:
    """Printable text, tabs and newlines stay; a line keeps no newline either."""
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
def test_what_a_terminal_would_act_on_is_shown(text: str, shown: str) -> None:
    """As Python writes it in a literal."""
    assert shown == quoting.terminal(text)
    assert shown.replace("\n", r"\n").replace("\t", r"\t") == quoting.line(text)


def test_a_word_for_a_shell_has_no_control_characters() -> None:
    """They would act on the terminal that it is pasted into."""
    assert "'a b'" == quoting.shell("a b")
    with pytest.raises(ValueError, match="control characters"):
        quoting.shell("\x1b")
