"""Generate the tables of `docs/observability.md`: fields of the access log, metrics, attributes of spans, columns of the ledger.

python tools/observability_tables.py            write the tables
python tools/observability_tables.py --check    fail if they are not current

A table is between the comments `<!-- table: NAME -->` and `<!-- table: end -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "addon"))

from azure_openai_proxy.accounting import access_log, span_attributes  # noqa: E402 - after sys.path has this repository
from azure_openai_proxy.accounting.ledger.columns import COLUMNS  # noqa: E402
from azure_openai_proxy.accounting.metric_names import metrics  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from azure_openai_proxy.accounting.metric_names import Metric
    from azure_openai_proxy.accounting.span_attributes import SpanAttribute
    from azure_openai_proxy.config.settings import Semconv

__all__ = ["DOCUMENT", "TABLES", "document", "main"]

DOCUMENT = Path("docs", "observability.md")
OTHER = "genai-0.1"
_PLACE = re.compile(r"(<!-- table: ([\w .-]+) -->\n).*?(<!-- table: end -->\n)", re.DOTALL)


def _table(head: str, rows: Iterable[Sequence[str]]) -> list[str]:
    columns = head.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(row) + " |" for row in lines]


def _spans(found: Iterable[SpanAttribute[Any]]) -> Callable[[], list[str]]:
    def named(row: SpanAttribute[Any], generation: Semconv) -> str:
        name = row.name_in(generation)
        return f"`{name}`" if name else "none"

    def table() -> list[str]:
        return _table(
            f"attribute|in `{OTHER}`, if different|meaning",
            ((named(row, "1.41"), named(row, "genai-0.1") if row.names else "", row.help) for row in found),
        )

    return table


def _fields() -> list[str]:
    return _table("field|meaning", ((f"`{field.name}`", field.description) for field in access_log.FIELDS))


def _columns() -> list[str]:
    return _table("column|meaning", ((f"`{column.name}`", column.description) for column in COLUMNS))


def _metrics() -> list[str]:
    """The proxy's own metrics, and those of the conventions in both generations."""
    own = [row for row in metrics("1.41") if not row.name.startswith("gen_ai.")]
    conventions = [[row for row in metrics(semconv) if row.name.startswith("gen_ai.")] for semconv in ("1.41", "genai-0.1")]
    histograms = {row.prometheus: row.buckets for row in (*own, *conventions[0], *conventions[1]) if row.buckets}
    buckets = [f"- `{name}`: {', '.join(map(_bound, bounds))}" for name, bounds in histograms.items()]
    sections = {
        "The proxy's own:": _metric_rows(own),
        "Of the GenAI conventions with `azure_openai_semconv` 1.41, the default:": _metric_rows(conventions[0]),
        f"With `azure_openai_semconv` {OTHER}:": _metric_rows(conventions[1]),
        "Buckets:": buckets,
    }
    return [line for title, lines in sections.items() for line in (title, "", *lines, "")][:-1]


def _bound(bound: float) -> str:
    return f"{bound:g}" if bound < 1e6 else str(int(bound))


def _metric_rows(rows: Iterable[Metric]) -> list[str]:
    return _table(
        "Prometheus|OTLP, unit|type|labels|meaning",
        (
            (
                f"`{row.prometheus}`",
                f"`{row.name}`, `{row.unit}`",
                row.kind,
                ", ".join(f"`{name}`" for name in row.prometheus_labels),
                row.help,
            )
            for row in rows
        ),
    )


TABLES: dict[str, Callable[[], list[str]]] = {
    "access log": _fields,
    "metrics": _metrics,
    "spans": _spans(span_attributes.CALL_SPAN),
    "attempts": _spans(span_attributes.ATTEMPT_SPAN),
    "ledger": _columns,
}


def document(text: str) -> str:
    """The document with its tables as they should be."""

    def replaced(place: re.Match[str]) -> str:
        lines = TABLES[place[2]]()
        return place[1] + "".join(f"{line}\n" for line in ["", *lines, ""]) + place[3]

    return _PLACE.sub(replaced, text)


def main(arguments: Sequence[str]) -> int:
    path = ROOT / DOCUMENT
    text = path.read_text(encoding="utf-8")
    missing = set(TABLES) - {place[1] for place in _PLACE.findall(text)}
    for name in sorted(missing):
        print(f"{DOCUMENT}: the table `{name}` has no place: <!-- table: {name} -->")
    current = document(text)
    if "--check" in arguments:
        if current != text:
            print(f"{DOCUMENT} is not current: python tools/observability_tables.py")
        return int(current != text or bool(missing))
    path.write_text(current, encoding="utf-8")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
