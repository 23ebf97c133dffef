"""Warnings about options of mitmproxy that keep clients from reaching Azure OpenAI."""

from __future__ import annotations

import pytest

from azure_openai_proxy.config.option_conflicts import OptionConflicts

HOSTS = frozenset({"api.openai.com"})


@pytest.mark.parametrize(
    ("option", "bad", "good"),
    [
        ("connection_strategy", "eager", "lazy"),
        ("ignore_hosts", [".*openai.*"], ["other"]),
        ("allow_hosts", ["other"], ["^api.openai.com:443$"]),
        ("allow_hosts", ["other"], []),
        ("tcp_hosts", [":443$"], []),
        ("stream_large_bodies", "1k", None),
        ("validate_inbound_headers", False, True),
        ("proxyauth", "user:password", None),
    ],
)
def test_option_conflicts(option: str, bad: object, good: object, caplog: pytest.LogCaptureFixture) -> None:
    """A conflict is logged when it arises, not while it persists, and again when it recurs."""
    conflicts = OptionConflicts()
    for value, lines in ((good, 0), (bad, 1), (bad, 1), (good, 1), (bad, 2)):
        conflicts.check({option: value}, HOSTS)
        assert lines == len(caplog.messages)
    assert caplog.messages[0].startswith(f"{option}: ")
