"""The command `azure-openai-proxy usage`."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.record import NO_TOKENS
from azure_openai_proxy.cli import command, usage
from support.ledger import call, rows, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DAY = 86400.0


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a ledger with five calls, which the environment names."""
    url = f"sqlite:///{tmp_path}/usage.db"
    now = dt.datetime.now(dt.UTC).timestamp()
    write(
        parse(url),
        [
            call(time=now),
            call(time=now - 3 * DAY, client="bob", cost_usd=1234.5),
            call(time=now - 9 * DAY, model=None, tokens=NO_TOKENS, cost_usd=None, usage_state="unknown"),
            call(time=now - 200 * DAY, model="=HYPERLINK(1)", session="\x1b[2J,\n\u202e", status=500),
            call(time=now - 200 * DAY, model=" @sum"),
        ],
    )
    monkeypatch.setenv("AZURE_OPENAI_LEDGER", url)
    return url


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a refused command."""
    with pytest.raises(SystemExit, match="2"):
        usage.main(["usage", *arguments])
    output = capsys.readouterr()
    assert "" == output.out
    assert 1 == output.err.count("\n")
    return output.err


@pytest.mark.usefixtures("ledger")
def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row for each model, aligned, without control characters."""
    assert 0 == usage.main(["usage", "--by", "model,session"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("model", "session", "requests", "failed", "input_tokens", "cached_input_tokens", "cache_write_input_tokens"),
        *("output_tokens", "reasoning_output_tokens", "cost_usd", "unknown_usage"),
    ]
    assert 1 == len({len(line) for line in lines})
    assert all(line.isprintable() for line in lines)
    assert ["-", "s", "1", "0", "-", "-", "-", "-", "-", "-", "1"] == lines[1].split()
    assert ["gpt-4o", "s", "2", "0", "200", "80", "-", "20", "10", "1,234.7500", "0"] == lines[4].split()
    assert "\\x1b[2J,\\n\\u202e" in lines[3]


@pytest.mark.usefixtures("ledger")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is a list of objects: the group's columns, then the others; unknown values are null."""
    assert 0 == usage.main(["usage", "--by", "client", "--by", "model,client", "--since", "4d", "--format", "json"])
    known = {"input_tokens": 100, "cached_input_tokens": 40, "cache_write_input_tokens": None, "output_tokens": 10}
    assert [
        {
            "client": name,
            "model": "gpt-4o",
            "requests": 1,
            "failed": 0,
            **known,
            "reasoning_output_tokens": 5,
            "cost_usd": cost,
            "unknown_usage": 0,
        }
        for name, cost in [("alice", 0.25), ("bob", 1234.5)]
    ] == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("text", ["=1+1", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20SUM(1)", "a;=1+1", 'a";=1'])
def test_a_formula_in_csv(text: str) -> None:
    """No spreadsheet takes a text for a formula, or a part of it for another cell."""
    written = usage._csv(["model", "requests"], [{"model": text, "requests": 3}]).splitlines()[1]
    assert written.endswith('",3')
    (shown,) = csv.reader([written.removesuffix(",3")])
    assert [text if text.startswith("a") else f"'{text}"] == shown


@pytest.mark.usefixtures("ledger")
def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    """CSV has no cell that a spreadsheet executes, no control character, and empty cells for unknown values."""
    assert 0 == usage.main(["usage", "--by", "model,session", "--format", "csv"])
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert ["", "' @sum", "'=HYPERLINK(1)", "gpt-4o"] == [each["model"] for each in found]
    assert "\\x1b[2J,\\n\\u202e" == found[2]["session"]
    assert ("", "1234.75") == (found[0]["cost_usd"], found[3]["cost_usd"])


@pytest.mark.parametrize("age, requests", [("30m", 1), ("73h", 2), ("4d", 2), ("2w", 3), ("99w", 5)])
@pytest.mark.usefixtures("ledger")
def test_since(age: str, requests: int, capsys: pytest.CaptureFixture[str]) -> None:
    """An age is in minutes, hours, days or weeks."""
    assert 0 == usage.main(["usage", "--since", age, "--format", "json"])
    assert requests == sum(each["requests"] for each in json.loads(capsys.readouterr().out))


def test_an_empty_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty ledger is a table's head, an empty list, or a CSV's head."""
    url = f"sqlite:///{tmp_path}/usage.db"
    write(parse(url), [])
    for form, expected in [("table", "model  requests"), ("json", "[]\n"), ("csv", "model,requests")]:
        assert 0 == usage.main(["usage", "--ledger", url, "--format", form])
        assert capsys.readouterr().out.startswith(expected)


def test_prune(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Old rows are removed, and the report by model stays."""
    for age, line in [("90d", "removed 2 rows from before "), ("8d", "removed 1 row from before ")]:
        assert 0 == usage.main(["usage", "prune", "--older-than", age])
        assert capsys.readouterr().out.startswith(line)
    assert 2 == len(rows(parse(ledger)))
    assert 0 == usage.main(["usage", "--format", "json"])
    assert 5 == sum(each["requests"] for each in json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    "arguments, right",
    [
        (["--by", "model,key\x1b"], "'key\\x1b' is none of model, client, day, backend, session"),
        (["--since", "yesterday"], "as in 30m, 24h, 7d, 2w"),
        (["--since", "0d"], "as in"),
        (["--since", "999999w"], "as in"),
        (["--format", "xml"], "invalid choice"),
        (["--form", "json"], "unrecognized arguments"),
        (["delete"], "unrecognized arguments"),
        (["prune"], "--older-than"),
        (["--ledger", "usage.db"], "--ledger or AZURE_OPENAI_LEDGER: not the URL of a database"),
        (["--ledger", "mysql://u:secret@h/d"], "unknown database or driver"),
        ([], "no database: use --ledger URL or AZURE_OPENAI_LEDGER=URL"),
    ],
)
def test_bad_arguments(arguments: list[str], right: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Invalid arguments are refused in one line, without a password."""
    monkeypatch.delenv("AZURE_OPENAI_LEDGER", raising=False)
    line = refused(arguments, capsys)
    assert line.startswith("azure-openai-proxy usage")
    assert right in line
    assert "secret" not in line


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without SQLAlchemy one line says how to install it."""
    monkeypatch.setitem(sys.modules, "sqlalchemy.exc", None)
    assert 'pip install ".[ledger]"' in refused(["--ledger", "sqlite:///usage.db"], capsys)


@pytest.mark.parametrize(
    "url, why",
    [
        ("sqlite:///{}/none.db", "unable to open database file"),
        ("sqlite:///{}/text", "not a database"),
        ("sqlite:///{}/empty.db", "the database has no ledger"),
        ("postgresql://u:secret@127.0.0.1:1/d", "refused"),
    ],
)
def test_a_database_that_cannot_be_read(url: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A database that is missing, down or another's is reported in one line, and no file is created."""
    (tmp_path / "text").write_text("no database, but of a sufficient length " * 30)
    (tmp_path / "empty.db").touch()
    before = sorted(tmp_path.iterdir())
    for arguments in (["usage"], ["usage", "prune", "--older-than", "1d"]):
        assert 1 == usage.main([*arguments, "--ledger", url.format(tmp_path)])
        error = capsys.readouterr().err
        assert 1 == error.count("\n")
        assert why in error
        assert "secret" not in error
    assert before == sorted(tmp_path.iterdir())


@pytest.mark.slow
def test_an_output_of_another_encoding(ledger: str) -> None:
    """A name that the output's encoding lacks is escaped."""
    write(parse(ledger), [call(model="模型")])
    ran = subprocess.run(
        [sys.executable, "-m", "azure_openai_proxy.cli.command", "usage"],
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=True,
    )
    assert b"\\u6a21\\u578b" in ran.stdout


@pytest.mark.usefixtures("ledger")
@pytest.mark.slow
def test_a_reader_that_leaves() -> None:
    """An output that is closed, as by `head`, is no error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "azure_openai_proxy.cli.command", "usage"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert b"" == process.stderr.read()
    process.stderr.close()
    assert 0 == process.wait(60)


@pytest.mark.slow
def test_the_command_needs_no_mitmproxy(ledger: str) -> None:
    """The command is a part of azure-openai-proxy and loads no mitmproxy."""
    script = (
        "import sys; sys.modules['mitmproxy'] = None\n"
        "from azure_openai_proxy.cli import command; sys.exit(command.main(['usage', '--by', 'day']))"
    )
    ran = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, check=False, text=True)
    assert (0, "") == (ran.returncode, ran.stderr)
    assert "azure-openai-proxy usage" in command.usage()
