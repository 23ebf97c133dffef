"""The tables of docs/observability.md that are made from the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import observability_tables as tool
import pytest

from azure_openai_proxy.accounting import access_log, span_attributes
from azure_openai_proxy.accounting.ledger.columns import COLUMNS
from azure_openai_proxy.accounting.metric_names import metrics
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_document_is_current() -> None:
    """The repository's document has the tables of the code."""
    assert 0 == tool.main(["--check"])


def test_every_attribute_is_documented() -> None:
    """Each attribute of a span has a row, with its name in each generation."""
    text = (ROOT / tool.DOCUMENT).read_text()
    rows = [(row.name_in("1.41"), row.name_in("genai-0.1")) for row in span_attributes.CALL_SPAN]
    rows += [(row.name_in("1.41"), row.name_in("genai-0.1")) for row in span_attributes.ATTEMPT_SPAN]
    assert [] == [name for row in rows for name in row if name and f"| `{name}` |" not in text]


def test_every_field_is_documented() -> None:
    """Each field of the access log has a row, in the order of the log."""
    rows = [f"| `{field.name}` | {field.description} |" for field in access_log.FIELDS]
    assert "\n".join(rows) in (ROOT / tool.DOCUMENT).read_text()


def test_every_column_is_documented() -> None:
    """Each column of the ledger has a row, in the order of the database."""
    rows = [f"| `{column.name}` | {column.description} |" for column in COLUMNS]
    assert "\n".join(rows) in (ROOT / tool.DOCUMENT).read_text()


def test_every_metric_is_documented() -> None:
    """Each metric has a row in each generation, with its labels, and its buckets."""
    text = (ROOT / tool.DOCUMENT).read_text()
    for row in (*metrics("1.41"), *metrics("genai-0.1")):
        labels = ", ".join(f"`{label}`" for label in row.prometheus_labels)
        assert f"| `{row.prometheus}` | `{row.name}`, `{row.unit}` | {row.kind} | {labels} | {row.help} |" in text
        assert not row.buckets or f"- `{row.prometheus}`: " in text


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty document in place of the repository's."""
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    found = tmp_path / tool.DOCUMENT
    found.parent.mkdir()
    return found


def test_tables_are_written(paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text between the comments is replaced; a second run changes nothing."""
    places = "".join(f"<!-- table: {name} -->\nold\n<!-- table: end -->\n" for name in tool.TABLES)
    paper.write_text(f"# Title\n\n{places}the end\n")
    assert 1 == tool.main(["--check"])
    assert "is not current: python tools/observability_tables.py" in capsys.readouterr().out
    assert 0 == tool.main([])
    text = paper.read_text()
    assert "old" not in text
    assert text.endswith("the end\n")
    assert 0 == tool.main(["--check"])


def test_a_table_without_a_place_is_an_error(paper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table that the document lacks is named."""
    paper.write_text("# Title\n")
    assert 1 == tool.main([])
    assert "the table `spans` has no place" in capsys.readouterr().out
