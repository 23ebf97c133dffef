"""Repairs that worked, kept for later requests."""

from __future__ import annotations

from azure_openai_proxy.routing.learned_repairs import Key, Learned
from azure_openai_proxy.routing.repair_changes import Drop


def test_learned_repairs() -> None:
    """Each repair is stored once per backend, deployment and operation, and the least recently used entry is evicted."""
    learned = Learned(most=2)
    learned.add(Key("a", "d"), [Drop("user")])
    learned.add(Key("a", "d"), [Drop("user"), Drop("store")])
    learned.add(Key("a", "e"), [Drop("seed")])
    learned.add(Key("a", "x"), [])
    assert 2 == len(learned)
    assert ((Drop("user"), Drop("store")), ()) == (learned.get(Key("a", "d")), learned.get(Key("a", "d", scope=b"other")))
    learned.add(Key("a", "f"), [Drop("seed")])
    assert [Key("a", "d"), Key("a", "f")] == list(learned.all())
    learned.clear()
    assert {} == learned.all()


def test_learned_repairs_are_published() -> None:
    """A key is published when it has a new repair, and not when it was learned from others."""
    learned = Learned()
    published: list[Key] = []
    learned.publish = published.append
    key = Key("east", "gpt-4o")
    learned.add(key, [Drop("top_p")])
    learned.add(key, [Drop("top_p")])
    learned.add(key, [])
    learned.learn(key, [Drop("seed")])
    assert [key] == published
    assert (Drop("top_p"), Drop("seed")) == learned.get(key)
