"""The document that is made from the table of endpoints."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.api.endpoints import ENDPOINTS
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, with a folder of its own to write in."""
    spec = importlib.util.spec_from_file_location("operations_table", ROOT / "tools" / "operations_table.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_the_document_is_current(tool: ModuleType) -> None:
    """What the repository has is what the table says now."""
    assert tool.document() == (ROOT / "docs" / "operations.md").read_text()


def test_every_row_is_in_it_once(tool: ModuleType) -> None:
    """No operation of the table is left out but the rule, which has a paragraph."""
    text = tool.document()

    named = [f"|`{row.method.replace('WS', 'WebSocket')} {row.path}`|" for row in ENDPOINTS]
    assert [1] * (len(named) - 1) + [0] == [text.count(name) for name in named]


def test_each_row_says_whether_it_may_be_sent_twice(tool: ModuleType) -> None:
    """The last column follows the table: a `POST` may be sent twice if it creates nothing, and methods that read, replace or delete may."""
    table = tool.document().partition("## Answered by the proxy")[0]
    cells = {line.split("|")[1]: line.split("|")[-2] for line in table.splitlines() if line.startswith("|`")}

    for row in ENDPOINTS:
        if row.handled_by == "azure" and row.path != "/**":
            told = cells[f"`{row.method.replace('WS', 'WebSocket')} {row.path}`"]
            assert (row.repeatable or row.method != "POST") == (not told.startswith("no") or row.method == "*"), row
            assert (row.method == "*") == (told == "not `POST`, `PATCH`"), row
    assert "yes, without `background`" == cells["`POST /responses`"]


def test_check_tells_whether_it_is_current(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` writes nothing, and fails until the document is written."""
    assert [1, 0, 0] == [tool.main(["--check"]), tool.main([]), tool.main(["--check"])]
    assert "docs/operations.md is not current" in capsys.readouterr().out

    (tmp_path / "docs" / "operations.md").write_text("old")

    assert 1 == tool.main(["--check"])


def test_the_summary_stands_between_its_marks(tool: ModuleType, tmp_path: Path) -> None:
    """In the README nothing else changes, and nothing at all where there are no marks."""
    readme = tmp_path / "README.md"
    for text, expected in (("no marks", "no marks"), (f"a{tool.BEGIN}old{tool.END}b", f"a{tool.BEGIN}{tool.summary()}{tool.END}b")):
        readme.write_text(text)
        tool.main([])
        assert expected == readme.read_text()


def test_the_summary_names_every_family_once(tool: ModuleType) -> None:
    """Azure serves chats, the proxy lists models, neither has the organization's administration."""
    _, _, azure, here, nobody, _ = tool.summary().split("\n")

    assert "`chat`" in azure
    assert "`models`" in here
    assert "`organization`" in nobody
    assert [1] * 3 == [tool.summary().count(f"`{family}`") for family in ("engines", "videos", "fine_tuning")]
