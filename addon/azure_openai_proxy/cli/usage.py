"""`azure-openai-proxy usage`: reports of the ledger, and the removal of its old rows. It needs no endpoint and no mitmproxy."""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import io
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.accounting.ledger.columns import GROUPS
from azure_openai_proxy.formats import quoting

from .argument_parser import Parser
from .ledger_command import add_ledger, opened
from .standard_output import write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from azure_openai_proxy.accounting.ledger.database import Database

__all__ = ["main"]

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The first characters by which spreadsheets recognize a formula, also in their full-width forms."""


def main(arguments: Sequence[str]) -> int:
    """Run `usage` or `usage prune`. Return 0, or 1 if the database cannot be read."""
    pruning = list(arguments[1:2]) == ["prune"]
    parser = _prune_parser() if pruning else _usage_parser()
    asked = parser.parse_args(arguments[2 if pruning else 1 :])
    ledger = opened(parser, asked.ledger)
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - optional

    from azure_openai_proxy.accounting.ledger import database, report, schema  # noqa: PLC0415 - they need it

    try:
        text = _pruned(ledger, asked.older_than) if pruning else _reported(ledger, asked)
    except (database.Unusable, report.NoLedger, schema.TooNew, SQLAlchemyError) as error:
        print(f"{parser.prog}: {ledger}: {ledger.describe(error)}", file=sys.stderr)  # noqa: T201 - a command prints
        return 1
    write(text)
    return 0


def _usage_parser() -> Parser:
    parser = Parser(
        prog="azure-openai-proxy usage",
        description="Print the requests, tokens and costs in the ledger, a row for each group. `usage prune` removes old rows.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--by", type=_groups, action="extend", help=f"columns to group by, separated by commas: {', '.join(GROUPS)}; default: model"
    )
    parser.add_argument(
        "--since", type=_ago, metavar="AGE", help="only calls of the last minutes (30m), hours (24h), days (7d) or weeks (2w)"
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    add_ledger(parser)
    return parser


def _prune_parser() -> Parser:
    parser = Parser(
        prog="azure-openai-proxy usage prune",
        description="Remove the rows of old calls. The sums of each day stay, for reports (except by session) and budgets.",
        allow_abbrev=False,
    )
    parser.add_argument("--older-than", type=_ago, required=True, metavar="AGE", help="such as 90d, 12w")
    add_ledger(parser)
    return parser


def _groups(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"{name[:50]!r} is none of {', '.join(GROUPS)}")
    return names


def _ago(text: str) -> dt.datetime:
    """Return the time before now by an age such as 7d."""
    match = re.fullmatch("([1-9][0-9]{0,5})([mhdw])", text, re.ASCII)
    try:
        if match is None:
            raise OverflowError  # noqa: TRY301 - the same message
        return dt.datetime.now(dt.UTC) - dt.timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise argparse.ArgumentTypeError("write a number of minutes, hours, days or weeks, as in 30m, 24h, 7d, 2w") from None


def _pruned(ledger: Database, before: dt.datetime) -> str:
    from azure_openai_proxy.accounting.ledger import report  # noqa: PLC0415 - optional

    count = report.prune(ledger, before)
    return f"removed {count} row{'' if count == 1 else 's'} from before {before:%Y-%m-%d %H:%M} UTC\n"


def _reported(ledger: Database, asked: argparse.Namespace) -> str:
    from azure_openai_proxy.accounting.ledger import report  # noqa: PLC0415 - optional

    by = list(dict.fromkeys(asked.by or ["model"]))
    found = report.usage(ledger, by, asked.since)
    columns = [*by, *report.VALUES]
    match asked.format:
        case "json":
            return json.dumps([{name: group[name] for name in columns} for group in found], indent=2) + "\n"
        case "csv":
            return _csv(columns, found)
    return _table(columns, found, len(by))


def _csv(columns: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """Return RFC 4180. A text that a spreadsheet would execute gets an apostrophe, and unknown values are empty.

    Texts are quoted, because some spreadsheets separate cells at a semicolon.
    """
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerow(columns)
    writer = csv.writer(output, lineterminator="\n", quoting=csv.QUOTE_STRINGS)
    for group in found:
        writer.writerow(_harmless(value) if isinstance(value := group[name], str) else value for name in columns)
    return output.getvalue()


def _harmless(text: str) -> str:
    return quoting.line(f"'{text}" if text.lstrip(" \xa0").startswith(_FORMULA) else text)


def _table(columns: Sequence[str], found: Sequence[Mapping[str, Any]], groups: int) -> str:
    """Return aligned columns. Unknown values are `-`."""
    lines = [list(columns), *([_cell(name, group[name]) for name in columns] for group in found)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "".join(
        "  ".join(
            cell.ljust(width) if index < groups else cell.rjust(width) for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return quoting.line(value)
    return f"{value:,.4f}" if name == "cost_usd" else f"{value:,}"
