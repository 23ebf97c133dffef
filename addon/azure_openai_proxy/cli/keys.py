"""`azure-openai-proxy keys`: the client keys that the ledger's database manages. It needs no endpoint and no mitmproxy."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.config.clients import PERIODS, parse_expiry
from azure_openai_proxy.formats import quoting

from .argument_parser import Parser
from .ledger_command import add_ledger, opened
from .standard_output import write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.accounting.ledger.database import Database
    from azure_openai_proxy.accounting.ledger.keys import ManagedKey

__all__ = ["main"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_GRACE = 366 * 86400
_COLUMNS = ("name", "models", "requests_per_minute", "tokens_per_minute", "max_parallel", "budget", "group", "expires", "disabled")
"""The columns of the table."""


def main(arguments: Sequence[str]) -> int:
    """Run a command of `keys`. Return 0, or 1 if the database cannot be used or the name does not fit."""
    parser, commands = _parser()
    asked = parser.parse_args(arguments[1:])
    parser = commands[asked.command]
    ledger = opened(parser, asked.ledger)
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - optional

    from azure_openai_proxy.accounting.ledger import database, keys, schema  # noqa: PLC0415 - they need it

    try:
        text = _run(ledger, asked)
    except (keys.KeyExists, keys.NoKey) as error:
        print(f"{parser.prog}: {quoting.line(str(error))}", file=sys.stderr)  # noqa: T201 - a command prints
        return 1
    except (database.Unusable, schema.TooNew, SQLAlchemyError) as error:
        print(f"{parser.prog}: {ledger}: {ledger.describe(error)}", file=sys.stderr)  # noqa: T201
        return 1
    write(text)
    return 0


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="azure-openai-proxy keys",
        description="Create and revoke the client keys in the ledger's database. Running proxies know a change within five seconds.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, *, named: bool = True) -> Parser:
        added = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.", allow_abbrev=False)
        if named:
            added.add_argument("name", type=_name, metavar="NAME", help="name of the client")
        add_ledger(added)
        added.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
        return added

    create = command("create", "create a key and print it; it cannot be printed again")
    names = {"type": _names, "action": "extend", "metavar": "NAME,..."}
    create.add_argument("--models", help="patterns of the model names that it may ask for; default: all", **names)  # type: ignore[arg-type]
    create.add_argument("--backends", help="names of the backends that it may use; default: all", **names)  # type: ignore[arg-type]
    create.add_argument("--budget", type=_budget, metavar="USD/PERIOD", help="such as 50/month; the period is day, week, month or total")
    create.add_argument("--rpm", type=_count, metavar="N", help="requests a minute")
    create.add_argument("--tpm", type=_count, metavar="N", help="tokens a minute")
    create.add_argument("--max-parallel", type=_count, metavar="N", help="requests at the same time")
    create.add_argument("--group", type=_name, metavar="NAME", help="a group of azure_openai_client_groups, whose limits it shares")
    create.add_argument(
        "--expires", type=_date, metavar="DATE", help="such as 2027-03-31 (UTC, from its beginning) or 2027-03-31T18:00+01:00"
    )
    create.add_argument(
        "--unmetered",
        action="store_true",
        help="it may create batches, jobs and other work whose tokens the proxy does not see, in spite of a budget",
    )
    command("list", "list all keys, without the keys themselves", named=False)
    command("show", "show the rights, limits and budget of one key, which cannot be printed again")
    rotate = command("rotate", "replace a key by a new one and print it; the old one ends at once, or after --grace")
    rotate.add_argument("--grace", type=_duration, default=0.0, metavar="AGE", help="how long the old key is valid, such as 30m, 24h, 7d")
    command("disable", "refuse a key from now on")
    command("delete", "remove a key; its calls stay in the ledger")
    return parser, commands.choices


def _run(ledger: Database, asked: argparse.Namespace) -> str:
    from azure_openai_proxy.accounting.ledger import keys  # noqa: PLC0415 - optional

    secret = None
    match asked.command:
        case "create":
            usd, period = asked.budget or (None, None)
            wanted = keys.ManagedKey(
                name=asked.name,
                models=tuple(asked.models or ()),
                backends=tuple(asked.backends or ()),
                requests_per_minute=asked.rpm,
                tokens_per_minute=asked.tpm,
                max_parallel=asked.max_parallel,
                budget_usd=usd,
                budget_period=period,
                client_group=asked.group,
                expires=asked.expires,
                unmetered=asked.unmetered,
            )
            key, secret = keys.create(ledger, wanted)
        case "list":
            return _listed(keys.listed(ledger), asked.format)
        case "rotate":
            key, secret = keys.rotate(ledger, asked.name, asked.grace)
        case _:
            key = {"show": keys.find, "disable": keys.disable, "delete": keys.delete}[asked.command](ledger, asked.name)
    shown = _shown(key, secret)
    if asked.format == "json":
        return json.dumps(shown, indent=2) + "\n"
    if secret:
        return f"{secret}\nThis is the key of {key.name}. It is not stored and cannot be shown again.\n"
    if asked.command == "show":
        width = max(map(len, shown))
        return "".join(f"{name.ljust(width)}  {_cell(value)}\n" for name, value in shown.items())
    return f"{key.name} is {asked.command}d. Running proxies refuse its key within five seconds.\n"


def _shown(key: ManagedKey, secret: str | None = None) -> dict[str, Any]:
    """Return a key with the names of the configuration file. `key` is there only when it is new."""
    return {
        "name": key.name,
        **({"key": secret} if secret else {}),
        "key_sha256": key.key_sha256,
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_parallel": key.max_parallel,
        "budget_usd": key.budget_usd,
        "budget_period": key.budget_period,
        "group": key.client_group,
        "expires": _time(key.expires),
        "backends": list(key.backends),
        "disabled": key.disabled,
        "unmetered": key.unmetered,
        "created": _time(key.created),
        "previous_key_until": _time(key.previous_until),
    }


def _time(seconds: float | None) -> str | None:
    from azure_openai_proxy.accounting.ledger import keys  # noqa: PLC0415 - optional

    return None if seconds is None else keys.utc(seconds).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _listed(found: Sequence[ManagedKey], form: str) -> str:
    if form == "json":
        return json.dumps([_shown(key) for key in found], indent=2) + "\n"
    lines = [list(_COLUMNS)]
    for key in found:
        shown = _shown(key)
        shown["budget"] = None if key.budget_usd is None else f"{key.budget_usd:g}/{key.budget_period}"
        lines.append([_cell(shown[name]) for name in _COLUMNS])
    widths = [max(len(line[index]) for line in lines) for index in range(len(_COLUMNS))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return quoting.line(",".join(value) if isinstance(value, list) else str(value))


# Values of arguments


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,100}", text):
        raise argparse.ArgumentTypeError("write a name of letters, digits, dots and hyphens")
    return text


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(0 < len(name) <= 200 and name.isprintable() for name in names):
        raise argparse.ArgumentTypeError("write names, separated by commas")
    return names


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,11}", text, re.ASCII):
        raise argparse.ArgumentTypeError("write a whole number from 1")
    return int(text)


def _budget(text: str) -> tuple[float, str]:
    usd, _, period = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", usd, re.ASCII) or period not in PERIODS:
        raise argparse.ArgumentTypeError("write an amount in USD and a period: 5/day, 20/week, 50/month or 100/total")
    return float(usd), period


def _date(text: str) -> float:
    try:
        time = parse_expiry(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("write a date or a time, as in 2027-03-31 or 2027-03-31T18:00+01:00") from None
    if time <= dt.datetime.now(dt.UTC):
        raise argparse.ArgumentTypeError(f"{text} is in the past: write a later date, which counts from its beginning in UTC, or a time")
    return time.timestamp()


def _duration(text: str) -> float:
    match = re.fullmatch("([0-9]{1,8})([smhdw])", text, re.ASCII)
    if match is None or (seconds := int(match[1]) * _UNITS[match[2]]) > _LONGEST_GRACE:
        raise argparse.ArgumentTypeError("write a number of minutes, hours, days or weeks up to a year, as in 30m, 24h, 7d")
    return float(seconds)
