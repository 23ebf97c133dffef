"""The extras of the package."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.config import extras
from azure_openai_proxy.config.backends import parse_entra
from azure_openai_proxy.config.otlp import url
from azure_openai_proxy.config.parsers import ledger, metrics_address, shared_state
from azure_openai_proxy.errors import SettingsError
from support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS: dict[extras.Extra, tuple[Callable[[str], object], str]] = {
    "entra": (parse_entra, "cli"),
    "ledger": (ledger, "sqlite:///usage.db"),
    "metrics": (metrics_address, "127.0.0.1:9464"),
    "otel": (url, "http://127.0.0.1:4318"),
    "redis": (shared_state, "redis://127.0.0.1:6379"),
}
"""A parser for each extra, and a value that needs the extra."""


def test_every_extra_of_the_package_is_known() -> None:
    """Each optional dependency in pyproject.toml has its error."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.EXTRAS) == set(project["optional-dependencies"]) == set(SETTINGS)


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_a_setting_needs_its_extra(extra: extras.Extra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its library a setting is refused in one line that says how to install the extra; off, it needs nothing."""
    parse, value = SETTINGS[extra]
    parse(value)
    monkeypatch.setattr(extras, "_installed", lambda _: False)
    with pytest.raises(SettingsError) as error:
        parse(value)
    assert str(error.value).endswith(f' needs {extras.EXTRAS[extra][0]}: pip install ".[{extra}]" in the proxy\'s repository')
    assert "\n" not in str(error.value)
    assert not parse("")


@pytest.mark.parametrize("module, there", [("json", True), ("json.no_such", False), ("no_such.module", False)])
def test_installed(module: str, there: bool) -> None:
    """An installed module is recognised without importing it."""
    assert there is extras._installed(module)
