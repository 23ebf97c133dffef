"""Clients in the configuration file, as settings of a running proxy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.config import sources, startup_warnings
from azure_openai_proxy.errors import SettingsError
from support.configuration import KEY, Mitmproxy, settings

if TYPE_CHECKING:
    from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from mitmproxy.test import taddons

CLIENTS = "azure_openai_clients:\n  - {name: a, key: sk-0123456789, group: team}\nazure_openai_client_groups: [{name: team}]\n"


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "mitm_config.yaml"


def test_clients_of_the_file(file: Path) -> None:
    """They are settings, and pages bring their own key while one is required."""
    file.write_text(CLIENTS)
    found = settings(AZURE_OPENAI_API_KEY=KEY)
    assert (["a"], ["team"], "", "refuse") == (
        [client.name for client in found.clients],
        [group.name for group in found.groups],
        found.client_auth,
        found.unpriced,
    )
    assert found.origins.every
    assert not settings(AZURE_OPENAI_API_KEY=KEY, AZURE_OPENAI_CLIENT_AUTH="optional").origins.every


def test_backends_without_a_key(mitmproxy: Mitmproxy, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning and the summary say that no client can use them; with a key, with Entra ID or without clients there is no warning."""
    file.write_text(CLIENTS)
    caplog.set_level("INFO")
    mitmproxy.start().running(mitmproxy.options)
    assert "The backend default has no key" in caplog.text
    assert "no key for Azure, keys of clients required (1 in the file)" in caplog.text
    assert "the clients' own keys" not in caplog.text
    for given in ({"AZURE_OPENAI_API_KEY": KEY}, {"AZURE_OPENAI_ENTRA": "cli"}, {"AZURE_OPENAI_CLIENT_AUTH": "off"}):
        assert [] == list(startup_warnings.keyless(settings(**given)))


@pytest.mark.parametrize("ledger", ["", "sqlite:///x.db"])
def test_budgets_without_a_ledger(ledger: str, mitmproxy: Mitmproxy, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line at the start says that they begin anew, and the summary that keys are required."""
    file.write_text("azure_openai_clients: [{name: a, key: sk-0123456789, budget_usd: 1}]")
    caplog.set_level("INFO")
    mitmproxy.start(AZURE_OPENAI_LEDGER=ledger).running(mitmproxy.options)
    assert bool(ledger) is not ("Budgets begin anew" in caplog.text)
    assert "keys of clients required (1 in the file)" in caplog.text


def test_an_invalid_client(file: Path) -> None:
    """The error names the setting and the file."""
    file.write_text("azure_openai_clients: [{name: a}]")
    with pytest.raises(SettingsError, match=r"azure_openai_clients \(mitm_config.yaml\): a: write its key"):
        settings()
    file.write_text("azure_openai_client_groups: [{name: a, x: 1}]")
    with pytest.raises(SettingsError, match=r"azure_openai_client_groups \(mitm_config.yaml\): a: x is not a key"):
        settings()


def test_clients_need_azure_mode(file: Path) -> None:
    """In openai mode the client's key would be forwarded."""
    file.write_text(CLIENTS)
    with pytest.raises(SettingsError, match=r"azure_openai_clients .*: keys of clients need azure_openai_proxy_mode: azure"):
        settings(AZURE_OPENAI_PROXY_MODE="openai")
    file.write_text("azure_openai_client_auth: required")
    with pytest.raises(SettingsError, match=r"azure_openai_client_auth .*: keys of clients need azure_openai_proxy_mode: azure"):
        settings(AZURE_OPENAI_PROXY_MODE="openai")


def test_a_list_is_for_the_file() -> None:
    """On the command line it is an error."""
    with pytest.raises(SettingsError, match="a list of clients can be set in"):
        sources._check_set(["azure_openai_clients"], "--set")


def test_changes_while_running(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong file changes nothing but a line of the log; a key file is watched; the last client can be removed."""
    key = file.with_name("key")
    key.write_text("sk-0123456789")
    file.write_text("azure_openai_clients: [{name: a, key_file: key}]\nazure_openai_client_auth: required\n")
    with taddons.context(loadcore=False) as context:
        mitmproxy = Mitmproxy(context)
        live = mitmproxy.start()
        live.running(mitmproxy.options)
        before = live.settings.clients
        assert any(path.name == "key" for path in live._stamps())
        file.write_text("azure_openai_clients: [{name: a}]\nazure_openai_client_auth: required\n")
        live.reread(mitmproxy.options)
        assert before == live.settings.clients
        assert "the previous settings stay in force" in caplog.text
        file.write_text("azure_openai_client_auth: required\n")
        live.reread(mitmproxy.options)
        assert () == live.settings.clients


def test_a_key_is_required_of_no_client(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such a start ends, unless a ledger may have keys."""
    file.write_text("azure_openai_client_auth: required\n")
    with taddons.context(loadcore=False) as context:
        Mitmproxy(context).start()
    assert "azure_openai_client_auth: it is required, but there is no client" in caplog.text
    caplog.clear()
    with taddons.context(loadcore=False) as context:
        Mitmproxy(context).start(AZURE_OPENAI_LEDGER="sqlite:///x.db")
    assert "azure_openai_client_auth" not in caplog.text
