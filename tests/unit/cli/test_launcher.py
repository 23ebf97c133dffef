"""The installed command: the tool that it starts, and the arguments."""

from __future__ import annotations

import runpy
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from mitmproxy.tools import main as tools

    from azure_openai_proxy.cli import command, launcher

ENDPOINT = {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}
SCRIPT = ["-s", str(launcher.SCRIPT)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and a home without mitmproxy's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AZURE_OPENAI_PROXY_ADDRESS", "AZURE_OPENAI_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "user, environ, file, ours",
    [
        ([], {}, "", []),
        (["~u x"], {"AZURE_OPENAI_PROXY_ADDRESS": "127.0.0.1:1"}, "", ["--listen-host", "127.0.0.1", "--listen-port", "1"]),
        (["--set", "azure_openai_proxy_address=[::1]:1"], {}, "", ["--listen-host", "::1", "--listen-port", "1"]),
        ([], {}, "azure_openai_proxy_address: 1", ["--listen-host", "", "--listen-port", "1"]),
        (["-p", "2"], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "", []),
        (["--listen-host", "::1"], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "", []),
        (["-m", "socks5@2"], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "", []),
        (["-m", "socks5"], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "", ["--listen-host", "", "--listen-port", "1"]),
        (["-m", "socks5", "-m", "regular"], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "", []),
        ([], {}, "listen_port: 3\nmode: [socks5, regular@4]", ["--mode", "socks5", "--mode", "regular@4", "--listen-port", "3"]),
        (["-p", "2"], {}, "listen_port: 3\nlisten_host: '::1'", ["--listen-host", "::1"]),
        ([], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "mode: [socks5, regular]", ["--mode", "socks5", "--mode", "regular"]),
        ([], {}, "listen_port: many", []),
    ],
)
def test_arguments(user: list[str], environ: dict[str, str], file: str, ours: list[str], folder: Path) -> None:
    """The arguments are the script, the address unless the user sets one, and the user's arguments unchanged."""
    (folder / "mitm_config.yaml").write_text(file)
    assert [*SCRIPT, *ours, *user] == launcher.arguments(user, {**ENDPOINT, **environ})


def test_a_misspelled_variable(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If a setting is missing, the message names a variable that was perhaps meant for it."""
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    monkeypatch.setenv("AZURE_OPENAI_ENDPONT", "https://r.openai.azure.com")
    assert 1 == launcher.main([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("azure-openai-proxy: azure_openai_endpoint is not set")
    assert line.endswith("(The environment variable AZURE_OPENAI_ENDPONT is not read: did you mean AZURE_OPENAI_ENDPOINT?)")


def test_confdir(folder: Path) -> None:
    """mitmproxy's config.yaml is read from the directory of --set confdir."""
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text("azure_openai_proxy_address: 5")
    user = ["--set", "confdir=conf"]
    assert [*SCRIPT, "--listen-host", "", "--listen-port", "5", *user] == launcher.arguments(user, ENDPOINT)


@pytest.mark.parametrize("user", [["-r", "a.flows"], ["-nr", "a.flows"], ["--rfile", "a.flows"], ["-r", "-"]])
def test_a_file_needs_no_endpoint(user: list[str], folder: Path) -> None:
    """It is shown without one."""
    (folder / "a.flows").touch()
    assert [*SCRIPT, *user] == launcher.arguments(user, {})


@pytest.mark.parametrize("name, reason", [("folder", "it is a directory"), ("none", "there is no such file")])
def test_a_file_of_flows_that_is_none(name: str, reason: str, folder: Path) -> None:
    """mitmproxy would log a traceback."""
    (folder / "folder").mkdir()
    with pytest.raises(SettingsError, match=f"^--rfile: {name} cannot be read: {reason}$"):
        launcher.arguments(["-nr", name], ENDPOINT)


@pytest.mark.parametrize(
    "text, message",
    [
        ("azure_openai_tokn: x", "^mitm_config.yaml: azure_openai_tokn is not an option: did you mean azure_openai_token"),
        ("azure_openai_ledger: usage.db", r"^azure_openai_ledger \(mitm_config.yaml\): write sqlite:///usage.db or "),
    ],
)
def test_a_bad_file(text: str, message: str, folder: Path) -> None:
    """A misspelled option and an invalid value raise before mitmproxy listens."""
    (folder / "mitm_config.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        launcher.arguments([], ENDPOINT)


def test_bad_setting() -> None:
    """An invalid setting raises before mitmproxy starts."""
    with pytest.raises(SettingsError, match="azure_openai_endpoint is not set"):
        launcher.arguments([], {})


@pytest.mark.parametrize(
    "user, tool, arguments",
    [
        (["-q"], "mitmdump", [*SCRIPT, "-q"]),
        (["--web", "-q"], "mitmweb", [*SCRIPT, "-q"]),
        (["-q", "--console"], "mitmproxy", [*SCRIPT, "-q"]),
        (["--version"], "mitmdump", [*SCRIPT, "--version"]),
        (["--options", "--web"], "mitmweb", [*SCRIPT, "--options"]),
        (["--help"], "mitmdump", ["--help"]),
        (["-h", "--web"], "mitmweb", ["-h"]),
    ],
)
def test_main(
    user: list[str], tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The selected tool is started with the extended arguments. sys.argv, which the addon reads, has the user's only."""
    started: list[tuple[str, list[str]]] = []
    for name in ("mitmdump", "mitmweb", "mitmproxy"):
        monkeypatch.setattr(tools, name, lambda arguments, name=name: started.append((name, arguments)))
    monkeypatch.setattr(sys, "argv", ["azure-openai-proxy", *user])
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    assert command.main() is None
    assert [(tool, arguments)] == started
    assert [argument for argument in user if argument not in launcher.TOOLS] == sys.argv[1:]
    out = capsys.readouterr().out
    assert all((f"azure-openai-proxy {each}" in out) == bool({"-h", "--help"} & set(user)) for each in ("[--web", "env", "doctor"))


def test_main_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid setting is reported in one line on stderr, with status 1."""
    monkeypatch.setattr(sys, "argv", ["azure-openai-proxy", "--set", "azure_openai_endpoint=ftp://x"])
    assert 1 == command.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("azure-openai-proxy: azure_openai_endpoint (--set): ")


def test_python_m(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m azure_openai_proxy` prints the path of the script, and that exists."""
    runpy.run_module("azure_openai_proxy", run_name="__main__")
    assert f"{launcher.SCRIPT}\n" == capsys.readouterr().out
    assert launcher.SCRIPT.is_file()


def test_importing_main_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Tools that import every module of a package get no output."""
    runpy.run_module("azure_openai_proxy.__main__", run_name="imported")
    assert "" == capsys.readouterr().out
