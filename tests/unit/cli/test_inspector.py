"""`azure-openai-proxy inspect`."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

import pytest
from mitmproxy import io

from azure_openai_proxy.cli import inspector
from support.conversations import assistant, chat, user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings but those of the test, and the logging as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inspector, "CONFDIR", str(tmp_path))
    monkeypatch.delenv("AZURE_OPENAI_PRICES", raising=False)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two threads."""
    path = tmp_path / "session.flows"
    flows = [
        chat([user("one, a@example.com")], model="own"),
        chat([user("one, a@example.com"), assistant("fine"), user("two")], at=5, model="own"),
        chat([user("other")], at=9),
    ]
    with path.open("wb") as opened:
        writer = io.FlowWriter(opened)
        for number, flow in enumerate(flows):
            flow.id = f"id-{number}"
            writer.add(flow)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = inspector.main(["inspect", *map(str, arguments)])
    return (status, *capsys.readouterr())


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All threads of a file, without an endpoint."""
    status, output, errors = run(capsys, file, "--format", "json")
    assert (0, "") == (status, errors)
    assert [("id-0", 2, None), ("id-2", 1, 7.5e-05)] == [
        (thread["id"], len(thread["calls"]), thread["cost_usd"]) for thread in json.loads(output)["threads"]
    ]


def test_text_is_the_default(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without options the output is an overview, with `--thread` a conversation."""
    assert "id-0  one, a@example.com\n" in run(capsys, file)[1]
    text = run(capsys, file, "--thread", "id-1")[1]
    assert "── user\none, a@example.com\n" in text
    assert "other" not in text


def test_a_new_output_is_its_owner_s_alone(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other users of the machine cannot read the conversation; a file that exists keeps its mode, and has nothing of its old text."""
    output = tmp_path / "out"
    assert 0 == run(capsys, file, "--output", output)[0]
    assert 0o600 == output.stat().st_mode & 0o777
    output.chmod(0o644)
    output.write_text("old " * 10_000)
    assert 0 == run(capsys, file, "--output", output)[0]
    assert (0o644, False) == (output.stat().st_mode & 0o777, "old" in output.read_text())


@pytest.mark.parametrize("format", ["html", "jsonl", "markdown", "text"])
def test_redaction_and_output(file: Path, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each format can be written to a file, without the removed texts."""
    output = tmp_path / "out"
    assert (0, "", "") == run(capsys, file, "--format", format, "--output", output, "--redact", "emails,ips", "--redact", "oth.r")
    text = output.read_text()
    assert "a@example.com" not in text
    assert "email 1" in text
    assert "other" not in text


def test_prices_are_those_configured_here(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A price file of the environment counts, and an invalid one is an error."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {own: {input: 1, output: 1}}")
    prices.chmod(0o600)
    monkeypatch.setenv("AZURE_OPENAI_PRICES", str(prices))
    assert [3e-05, 7.5e-05] == [thread["cost_usd"] for thread in json.loads(run(capsys, file, "--format", "json")[1])["threads"]]
    monkeypatch.setenv("AZURE_OPENAI_PRICES", str(tmp_path / "none.yaml"))
    status, output, errors = run(capsys, file)
    assert (1, "", True) == (status, output, "none.yaml" in errors)


def test_other_settings_do_not_matter(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that are invalid for another reason leave the built-in prices, with a note."""
    (tmp_path / "mitm_config.yaml").write_text("azure_openai_backends: [{name: a, endpoint: '${NOT_SET_HERE}'}]")
    status, output, errors = run(capsys, file, "--format", "json")
    assert (0, 2) == (status, len(json.loads(output)["threads"]))
    assert "the prices are the built-in ones" in errors


def test_a_cut_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole flows of a cut file are read, with a note on the standard error."""
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    status, output, errors = run(capsys, file, "--format", "json")
    assert (0, 1) == (status, len(json.loads(output)["threads"]))
    assert "is cut or damaged: 2 flows were read before that" in errors
    file.write_bytes(content[: len(content) // 3 + 200])
    assert "1 flow was read" in run(capsys, file)[2]


def test_a_file_that_is_cut_in_its_first_flow(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no whole flow, which is no error."""
    file.write_bytes(file.read_bytes()[:500])
    status, output, errors = run(capsys, file, "--format", "json")
    assert (0, {"threads": []}) == (status, json.loads(output))
    assert "is cut or damaged: 0 flows were read before that" in errors


def test_files_without_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file has no threads; one that is no file of flows, or does not exist, is an error."""
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.touch()
    other.write_bytes(b"\x00\xff no flows")
    assert (0, {"threads": []}) == (run(capsys, empty, "--format", "json")[0], json.loads(_output(capsys, empty)))
    for path in (other, tmp_path / "none"):
        status, output, errors = run(capsys, path)
        assert (1, "", 1) == (status, output, errors.count("\n"))
        assert str(path) in errors


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_or_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are refused in one line that names them, before a pipe is opened, which would wait for its writer."""
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "it is not a regular file"), (tmp_path, "it is a directory")):
        expected = (1, "", f"azure-openai-proxy inspect: {path} cannot be read: {reason}\n")
        assert expected == run(capsys, path)


def _output(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    return run(capsys, path, "--format", "json")[1]


def test_unknown_threads(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An id that no thread or several have is an error."""
    for id in ("x", "id", ""):
        status, output, errors = run(capsys, file, "--thread", id)
        assert (1, "") == (status, output)
        assert f"has no thread {id!r}" in errors


@pytest.mark.parametrize(("option", "value"), [("--redact", "("), ("--redact", "emals"), ("--format", "pdf"), ("--unknown", "x")])
def test_wrong_options(file: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong option is named in one line."""
    with pytest.raises(SystemExit, match="2"):
        inspector.main(["inspect", str(file), option, value])
    errors = capsys.readouterr().err
    assert (1, True) == (errors.count("\n"), option in errors)


def test_outputs_that_cannot_be_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing folder is an error in one line."""
    status, _, errors = run(capsys, file, "--output", tmp_path / "none" / "x")
    assert (1, True) == (status, "cannot be written" in errors)
