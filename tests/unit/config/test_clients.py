"""Clients, groups and their limits, as values."""

from __future__ import annotations

from azure_openai_proxy.config.clients import Client


def test_models_are_patterns() -> None:
    """A client without patterns may use all models; patterns are case-sensitive."""
    some = Client(name="a", models=("gpt-4*", "o3"))
    assert [True, True, False, False] == [some.may_use(name) for name in ("gpt-4o", "o3", "GPT-4o", "o3-mini")]
    assert Client(name="b").may_use("anything")
