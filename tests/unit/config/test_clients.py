"""Clients, groups and their limits, as values."""

from __future__ import annotations

import datetime as dt

from azure_openai_proxy.config.clients import Client, parse_expiry


def test_models_are_patterns() -> None:
    """A client without patterns may use all models; patterns are case-sensitive."""
    some = Client(name="a", models=("gpt-4*", "o3"))
    assert [True, True, False, False] == [some.may_use(name) for name in ("gpt-4o", "o3", "GPT-4o", "o3-mini")]
    assert Client(name="b").may_use("anything")


def test_dates() -> None:
    """A time without a zone is in UTC, another one is converted."""
    assert dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC) == parse_expiry("2026-01-02T03:00")
    assert dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC) == parse_expiry("2026-01-02T05:00+02:00")
