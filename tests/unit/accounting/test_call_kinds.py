"""The kinds of calls, and the texts in them."""

from __future__ import annotations

import pytest

from azure_openai_proxy.accounting.call_kinds import LARGEST, LONGEST, MOST, Kinds, shown, shown_ids
from azure_openai_proxy.accounting.record import COMMON, CallKind

SECRET = "sk-0123456789abcdef"


def kind(kinds: Kinds, secrets: tuple[str, ...] = (), **members: object) -> CallKind:
    """The kind of a call with these members, as they were found."""
    found = tuple(members.get(name) for name in COMMON)
    return kinds.find((secrets, found)) or kinds.add((secrets, found), found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt-4o", "gpt-4o"),
        ("", ""),
        ("a\nb\x1b", "a\\nb\\x1b"),
        (f"a-{SECRET}", "a-[key]"),
        ("é" * (LONGEST + 1), "é" * LONGEST),
        ("a" * (LONGEST - 2) + SECRET, "a" * (LONGEST - 2) + "[k"),
    ],
)
def test_a_text(text: str, expected: str) -> None:
    """It has one line, is bounded, and has no key, not even a part of one."""
    assert expected == shown(text, (SECRET,))
    assert expected == kind(Kinds(), (SECRET,), model=text).record().model


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_ids(secrets: tuple[str, ...]) -> None:
    """They are shown as any other text, also those that are missing."""
    long = "a" * (LONGEST - 2) + SECRET
    for one, other in ((None, None), ("r-1", None), (None, "c-1"), (f"r-{SECRET}", "c\n"), (long, f"c-{SECRET}")):
        expected = tuple(text and shown(text, secrets) for text in (one, other))
        assert expected == shown_ids(one, other, secrets)


def test_a_kind() -> None:
    """Calls with the same members have the same kind, and their records have its members."""
    kinds = Kinds()
    first, second, other = (kind(kinds, model=model, status=200) for model in ("a", "a", "b"))
    assert first is second
    assert first is not other
    assert 2 == len(kinds)
    record = first.record()
    assert (first, "a", 200, ()) == (record.kind, record.model, record.status, record.attempts)


def test_other_secrets() -> None:
    """A text that was shown for one client is masked for another one, whose key it contains."""
    kinds = Kinds()
    assert [SECRET, "[key]"] == [kind(kinds, secrets, model=SECRET).record().model for secrets in ((), (SECRET,))]


def test_the_memory_is_bounded() -> None:
    """Neither many kinds nor long texts nor long keys fill it."""
    kinds = Kinds()
    for number in range(2 * MOST):
        kind(kinds, model=str(number))
    assert 0 < len(kinds) <= MOST
    before = len(kinds)
    assert "a" * LONGEST == kind(kinds, model="a" * (LARGEST + 1)).record().model
    assert "m" == kind(kinds, ("s" * (LARGEST + 1),), model="m").record().model
    assert before == len(kinds)
