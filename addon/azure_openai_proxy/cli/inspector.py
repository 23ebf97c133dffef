"""`azure-openai-proxy inspect`: the threads of a flow file as text, JSON, HTML, JSONL or Markdown. It needs no endpoint and no server."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mitmproxy import exceptions, io

from azure_openai_proxy.config import regular_file, sources
from azure_openai_proxy.config.prices import read_file
from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats import quoting
from azure_openai_proxy.inspection.sharing import redact
from azure_openai_proxy.inspection.sharing.share import FORMATS, share, write
from azure_openai_proxy.inspection.threads.store import Threads

from . import standard_output
from .argument_parser import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mitmproxy.flow import Flow

    from azure_openai_proxy.config.prices import PriceFile

__all__ = ["main"]

CONFDIR = "~/.mitmproxy"
_UNREADABLE = (exceptions.FlowReadException, ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError)
"""Errors of mitmproxy for a file that is cut or is none of flows."""
_LENGTH = re.compile(rb"([1-9][0-9]{0,12}):")


def main(arguments: Sequence[str]) -> int:
    """Run `inspect`. Return 0, or 1 if the file cannot be read or has no such thread."""
    parser = _parser()
    asked = parser.parse_args(arguments[1:])
    try:
        redactor = redact.Redactor(redact.parse(asked.redact))
    except redact.BadPattern as error:
        parser.error(f"--redact: {error}")
    try:
        prices = _prices(parser.prog)
        flows = _flows(asked.file, parser.prog)
    except SettingsError as error:
        return _failed(parser.prog, str(error))
    logging.disable(logging.WARNING)  # of models without a price, whose costs are null
    threads = Threads(lambda: prices)
    for _ in threads.load(flows):
        pass
    ids = None
    if asked.thread is not None:
        found = threads.find(asked.thread)
        if found is None:
            return _failed(parser.prog, f"{asked.file} has no thread {asked.thread[:100]!r}, or several that begin so")
        ids = [found]
    return _write(share(threads, asked.format, ids, redactor), asked.output, parser.prog)


def _parser() -> Parser:
    parser = Parser(
        prog="azure-openai-proxy inspect",
        description="Print the calls in a file of flows as threads, with tokens, cost, and why the prompt cache was not used.",
        allow_abbrev=False,
    )
    parser.add_argument("file", help="a file that mitmproxy has saved, or a HAR file")
    parser.add_argument("--thread", metavar="ID", help="only this thread; the start of its id, or of the id of one of its calls, suffices")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--redact",
        action="append",
        default=[],
        metavar="WHAT",
        help=f"what to remove besides keys: {', '.join(redact.KINDS)}, or regular expressions, separated by commas; may be repeated",
    )
    parser.add_argument("--output", metavar="FILE", help="write to this file instead of the standard output")
    return parser


def _prices(prog: str) -> PriceFile | None:
    """The prices that are configured here. Settings that are invalid for another reason leave the built-in ones.

    Raises:
        SettingsError: the file of prices cannot be used.
    """
    try:
        found, _ = sources.gather(sources.Given(), os.environ, CONFDIR)
    except SettingsError as error:
        print(f"{prog}: the prices are the built-in ones, because of other settings: {quoting.line(str(error))}", file=sys.stderr)  # noqa: T201
        return None
    prices = found.get("azure_openai_prices")
    return read_file(str(prices.raw)) if prices else None


def _flows(name: str, prog: str) -> list[Flow]:
    """All flows of a file up to the first one that cannot be read.

    Raises:
        SettingsError: it cannot be read, or is no file of flows.
    """
    flows: list[Flow] = []
    try:
        with regular_file.opened(Path(name)) as file:
            flows.extend(io.FlowReader(file).stream())
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error.strerror}") from None
    except _UNREADABLE as error:
        if not flows and not _is_cut(Path(name)):
            raise SettingsError(f"{name} is not a file of flows: {error}") from None
        count = f"{len(flows):,} flow{' was' if len(flows) == 1 else 's were'}"
        print(f"{prog}: {quoting.line(name)} is cut or damaged: {count} read before that", file=sys.stderr)  # noqa: T201 - a command prints
    return flows


def _is_cut(path: Path) -> bool:
    """Whether a file is the beginning of one flow: mitmproxy writes its length before it."""
    with path.open("rb") as file:
        match = _LENGTH.match(file.read(20))
    return match is not None and path.stat().st_size < match.end() + int(match[1]) + 1


def _failed(prog: str, message: str) -> int:
    print(f"{prog}: {quoting.line(message)}", file=sys.stderr)  # noqa: T201 - a command prints
    return 1


def _write(text: str, output: str | None, prog: str) -> int:
    """Write to the file, or to the standard output."""
    if output is None:
        standard_output.write(text)
        return 0
    try:
        write(output, text)
    except OSError as error:
        return _failed(prog, f"{output} cannot be written: {error.strerror}")
    return 0
