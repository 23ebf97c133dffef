"""The subcommands of the installed command."""

from __future__ import annotations

import sys
import warnings
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from azure_openai_proxy.cli import command, launcher


def test_the_client_s_side(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`env` and `doctor` do not start a tool of mitmproxy."""
    monkeypatch.setattr(sys, "argv", ["azure-openai-proxy", "env", "--way", "base-url"])
    assert 0 == command.main()
    assert "OPENAI_BASE_URL" in capsys.readouterr().out


def test_help_names_each_subcommand_and_then_the_tool_s_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` prints one line for each subcommand, and the launcher gets it too, for the options of mitmproxy's tool."""
    given: list[Sequence[str]] = []
    monkeypatch.setattr(launcher, "main", given.append)
    assert command.main(["--help"]) is None
    printed = capsys.readouterr().out
    assert [] == [
        each.name for each in command.SUBCOMMANDS if f"azure-openai-proxy {each.name} [OPTIONS]\n    {each.summary}" not in printed
    ]
    assert [["--help"]] == given


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The version of this package comes before those that mitmproxy prints."""
    monkeypatch.setattr(launcher, "main", lambda _: None)
    command.main(["--version"])
    assert f"Azure OpenAI Proxy: {metadata.version('azure-openai-proxy')}\n" == capsys.readouterr().out


def test_other_arguments_start_the_proxy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A first argument that is no subcommand is mitmproxy's."""
    given: list[Sequence[str]] = []
    monkeypatch.setattr(launcher, "main", given.append)
    command.main(["-p", "env"])
    assert ([["-p", "env"]], "") == (given, capsys.readouterr().out)


@pytest.mark.parametrize(
    "word, meant",
    [
        *(("doctr", "doctor"), ("key", "keys"), ("inspct", "inspect"), ("help", "--help"), ("version", "--version")),
        *(("~u", ""), ("chat", "")),
    ],
)
def test_a_misspelled_subcommand_starts_nothing(
    word: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """mitmproxy takes a first argument without hyphens as a filter, so a misspelled subcommand would start the proxy."""
    given: list[Sequence[str]] = []
    monkeypatch.setattr(launcher, "main", given.append)
    status = command.main([word])
    expected = f"azure-openai-proxy: {word} is not a subcommand: did you mean {meant}?\n" if meant else ""
    assert (1 if meant else None, expected, [] if meant else [[word]]) == (status, capsys.readouterr().err, given)


def test_a_misspelled_subcommand_reaches_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in it are shown as escapes."""
    assert 1 == command.main(["\x1bdoctor"])
    assert r"\x1bdoctor is not a subcommand" in capsys.readouterr().err


@pytest.mark.parametrize("name", [each.name for each in command.SUBCOMMANDS])
def test_each_subcommand_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row of the table is a module that can be called, and lists its options without an endpoint."""
    with pytest.raises(SystemExit, match="0"):
        command.main([name, "--help"])
    assert f"usage: azure-openai-proxy {name}" in capsys.readouterr().out
