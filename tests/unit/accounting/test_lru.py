"""The mapping of bounded size."""

from __future__ import annotations

from azure_openai_proxy.accounting.lru import Lru


def test_the_least_recently_used_entry_is_dropped() -> None:
    """Reading and writing an entry keep it; `add` returns whether the key is new."""
    values: Lru[str, int] = Lru(2)
    assert [True, True, False] == [values.add(*entry) for entry in (("a", 1), ("b", 2), ("b", 3))]
    assert 1 == values.get("a", 0)
    values.add("c", 4)
    assert (["a", "c"], 2, 0) == (list(values), len(values), values.get("b", 0))
