"""The comparison of an installed package with a table of attributes. tests/unit/mitmproxy_patches/test_compat.py checks the tables."""

from __future__ import annotations

import pytest
from mitmproxy.addons.proxyserver import Proxyserver

from azure_openai_proxy.compatibility import Feature


@pytest.mark.parametrize(
    "members, missing",
    [
        ("connections", None),
        ("nonsense", "Proxyserver has no attribute nonsense"),
        ("register_connection(connection_id handler)", None),
        ("register_connection(connection_id)", "Proxyserver.register_connection takes (connection_id handler) and not (connection_id)"),
    ],
)
def test_what_is_missing(members: str, missing: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """An attribute or a parameter; one warning names it and the features that are lost with it."""
    feature = Feature("All is lost.", lambda: {"Proxyserver": Proxyserver()}, {"Proxyserver": members})
    assert [missing is None] * 2 == [feature.usable, feature.usable]
    assert [f"{missing}. All is lost."] * bool(missing) == [record.message.partition("known: ")[2] for record in caplog.records]


def test_what_fails() -> None:
    """A class that cannot be instantiated, or a module that cannot be imported, is a reason and not an error."""

    def fails() -> dict[str, object]:
        raise RuntimeError("nonsense")

    assert "RuntimeError: nonsense" == Feature("", fails, {}).missing()
    assert "No module named" in str(Feature("", dict, {}, "azure_openai_proxy.nonsense").missing())
