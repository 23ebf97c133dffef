"""Shared parts of the commands on the ledger's database: `usage` and `keys`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from azure_openai_proxy.accounting.ledger import INSTALL

if TYPE_CHECKING:
    import argparse

    from azure_openai_proxy.accounting.ledger.database import Database

    from .argument_parser import Parser

__all__ = ["add_ledger", "opened"]

VARIABLE = "AZURE_OPENAI_LEDGER"


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """Add the option for the database."""
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help=f"the database, such as sqlite:///usage.db; default: the environment's {VARIABLE}; the configuration file is not read",
    )


def opened(parser: Parser, given: str | None) -> Database:
    """Return the database of `--ledger` or the environment. The process ends with one line if there is none, or SQLAlchemy is missing."""
    url = given or os.environ.get(VARIABLE, "").strip()
    if not url:
        parser.error(f"no database: use --ledger URL or {VARIABLE}=URL, such as sqlite:///usage.db (the configuration file is not read)")
    try:
        import sqlalchemy.exc  # noqa: F401, PLC0415 - optional

        from azure_openai_proxy.accounting.ledger import database  # noqa: PLC0415 - it needs it
    except ImportError:
        parser.error(f"SQLAlchemy is missing: {INSTALL}")
    try:
        return database.parse(url)
    except database.BadURL as error:
        parser.error(f"--ledger or {VARIABLE}: {error}")
