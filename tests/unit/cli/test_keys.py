"""The command `azure-openai-proxy keys`."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.cli import command, keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database that does not exist yet, which the environment names."""
    url = f"sqlite:///{tmp_path}/usage.db"
    monkeypatch.setenv("AZURE_OPENAI_LEDGER", url)
    return url


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert 0 == keys.main(["keys", *arguments])
    output = capsys.readouterr()
    assert "" == output.err
    return output.out


def as_json(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(run([*arguments, "--format", "json"], capsys))


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a refused command."""
    with pytest.raises(SystemExit, match="2"):
        keys.main(["keys", *arguments])
    output = capsys.readouterr()
    assert "" == output.out
    assert 1 == output.err.count("\n")
    return output.err


EVERYTHING = [
    *("--models", "gpt-4*, o3", "--models", "gpt-5", "--backends", "east", "--budget", "50/month", "--rpm", "10", "--tpm", "10000"),
    *("--max-parallel", "3", "--group", "search", "--expires", "2099-12-31", "--unmetered"),
]
SHOWN = {
    "name": "alice",
    "models": ["gpt-4*", "o3", "gpt-5"],
    "requests_per_minute": 10,
    "tokens_per_minute": 10_000,
    "max_parallel": 3,
    "budget_usd": 50.0,
    "budget_period": "month",
    "group": "search",
    "expires": "2099-12-31T00:00:00Z",
    "backends": ["east"],
    "disabled": False,
    "unmetered": True,
    "previous_key_until": None,
}


def test_create_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A created key is printed once with its name, and the list has everything else by the names of the configuration file."""
    created = as_json(["create", "alice", *EVERYTHING], capsys)
    assert ["name", "key"] == list(created)[:2]
    key = created.pop("key")
    assert key.startswith("sk-")
    assert hashlib.sha256(key.encode()).hexdigest() == created["key_sha256"]
    assert created | SHOWN == created
    assert dt.datetime.fromisoformat(created["created"]).tzinfo
    assert [created] == as_json(["list"], capsys)
    assert created == as_json(["show", "alice"], capsys)


def test_a_key_without_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing option is null, an empty list or false."""
    created = as_json(["create", "bob"], capsys)
    nothing = [name for name, value in created.items() if value in (None, [], False)]
    assert set(SHOWN) - {"name"} == set(nothing)


def test_the_life_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    """For people, each command prints a line or a table; only a new key is printed, on a line of its own."""
    first = run(["create", "alice", *EVERYTHING], capsys).splitlines()[0]
    run(["create", "bob"], capsys)
    second = run(["rotate", "alice", "--grace", "24h"], capsys).splitlines()[0]
    assert first.startswith("sk-")
    assert second.startswith("sk-")
    assert first != second
    assert "2099-12-31T00:00:00Z" in run(["show", "alice"], capsys)
    table = run(["list"], capsys).splitlines()
    assert ["name", "models", "requests_per_minute", "tokens_per_minute", "max_parallel", "budget", "group", "expires", "disabled"] == (
        table[0].split()
    )
    assert ["alice", "gpt-4*,o3,gpt-5", "10", "10000", "3", "50/month", "search", "2099-12-31T00:00:00Z", "no"] == table[1].split()
    assert ["bob", "-", "-", "-", "-", "-", "-", "-", "no"] == table[2].split()
    assert run(["disable", "alice"], capsys).startswith("alice is disabled.")
    assert "yes" in run(["list"], capsys).splitlines()[1]
    assert run(["delete", "alice"], capsys).startswith("alice is deleted.")
    assert ["bob"] == [each["name"] for each in as_json(["list"], capsys)]


@pytest.mark.parametrize("grace, until", [([], False), (["--grace", "0h"], False), (["--grace", "30m"], True)])
def test_rotate_as_json(grace: list[str], until: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A rotated key is printed as a created one; the old one ends at once unless there is a grace."""
    created = as_json(["create", "alice"], capsys)
    rotated = as_json(["rotate", "alice", *grace], capsys)
    assert created["key"] != rotated["key"]
    assert until is bool(rotated["previous_key_until"])


@pytest.mark.parametrize("name", ["show", "rotate", "disable", "delete"])
def test_an_unknown_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name is an error of one line."""
    run(["create", "alice"], capsys)
    assert 1 == keys.main(["keys", name, "bob"])
    assert f"azure-openai-proxy keys {name}: there is no key of this name: bob\n" == capsys.readouterr().err


def test_a_taken_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A taken name is an error of one line."""
    run(["create", "alice"], capsys)
    assert 1 == keys.main(["keys", "create", "alice"])
    assert "azure-openai-proxy keys create: there is a key of this name already: alice\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, right",
    [
        ([], "COMMAND"),
        (["create"], "NAME"),
        (["create", "a b"], "write a name of letters"),
        (["create", "a", "--models", "x,,y"], "write names, separated by commas"),
        (["create", "a", "--budget", "50"], "50/month"),
        (["create", "a", "--budget", "nan/month"], "50/month"),
        (["create", "a", "--budget", "5/year"], "50/month"),
        (["create", "a", "--rpm", "0"], "write a whole number from 1"),
        (["create", "a", "--tpm", "1.5"], "write a whole number from 1"),
        (["create", "a", "--expires", "tomorrow"], "2027-03-31"),
        (["create", "a", "--expires", "0001-01-01T00:00+14:00"], "2027-03-31"),  # no year of UTC
        (["create", "a", "--expires", "9999-12-31T23:59:59-14:00"], "2027-03-31"),
        (["create", "a", "--expires", "2026-11-30"], "2026-11-30 is in the past"),
        (["create", "a", "--expires", "0001-01-01"], "0001-01-01 is in the past"),
        (["create", "a", "--exp", "2027-03-31"], "unrecognized arguments"),
        (["rotate", "a", "--grace", "1y"], "24h"),
        (["rotate", "a", "--grace", "9999w"], "up to a year"),
        (["list", "--format", "xml"], "invalid choice"),
        (["list", "--ledger", "usage.db"], "--ledger or AZURE_OPENAI_LEDGER: not the URL of a database"),
    ],
)
def test_bad_arguments(arguments: list[str], right: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Invalid arguments are refused in one line."""
    line = refused(arguments, capsys)
    assert line.startswith("azure-openai-proxy keys")
    assert right in line


def test_no_database(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a database one line says how to name it, and without SQLAlchemy how to install it."""
    monkeypatch.setitem(sys.modules, "sqlalchemy.exc", None)
    assert 'pip install ".[ledger]"' in refused(["list"], capsys)
    monkeypatch.delenv("AZURE_OPENAI_LEDGER")
    assert "use --ledger URL or AZURE_OPENAI_LEDGER=URL" in refused(["list"], capsys)


def test_a_database_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A database that is missing or down is reported in one line without its password."""
    for arguments, url in (
        (["list"], f"sqlite:///{tmp_path}/none.db"),
        (["create", "alice"], "postgresql://u:secret@127.0.0.1:1/d"),
    ):
        assert 1 == keys.main(["keys", *arguments, "--ledger", url])
        error = capsys.readouterr().err
        assert 1 == error.count("\n")
        assert "secret" not in error
    assert [] == list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_needs_no_mitmproxy() -> None:
    """The command is a part of azure-openai-proxy and loads no mitmproxy."""
    script = (
        "import sys; sys.modules['mitmproxy'] = None\n"
        "from azure_openai_proxy.cli import command; sys.exit(command.main(['keys', 'create', 'alice']))"
    )
    ran = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, check=False, text=True)
    assert (0, "") == (ran.returncode, ran.stderr)
    assert "azure-openai-proxy keys" in command.usage()
