"""The command `azure-openai-proxy`: `env` and `doctor` are for clients, `usage` and `keys` for the ledger, `inspect` for files of
flows, all else starts the proxy.

A subcommand is one row of `SUBCOMMANDS`. Its module is imported when it is called, so that `env` does not load mitmproxy.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.formats import quoting

from .standard_output import closing_early

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SUBCOMMANDS", "main"]


class Subcommand(NamedTuple):
    name: str
    module: str  # has `main(arguments)`, whose first argument is the subcommand's name
    summary: str


SUBCOMMANDS = (
    Subcommand("env", "azure_openai_proxy.cli.client_env", "print the environment variables that a client must set"),
    Subcommand("doctor", "azure_openai_proxy.cli.client_env", "test a client's connection through the proxy step by step"),
    Subcommand("inspect", "azure_openai_proxy.cli.inspector", "print the calls in a flow file as threads, or write one to share"),
    Subcommand("usage", "azure_openai_proxy.cli.usage", "print requests, tokens and costs from the ledger; `usage prune` removes old rows"),
    Subcommand("keys", "azure_openai_proxy.cli.keys", "create, list, rotate, disable and delete the client keys in the ledger's database"),
)
MIN_SIMILARITY = 0.7
"""Least similarity of a first argument to a subcommand to be reported. Others are filters of mitmproxy."""
USAGE = """\
azure-openai-proxy [--web | --console] [OPTIONS OF MITMDUMP, MITMWEB OR MITMPROXY]
    start the proxy in mitmdump; with --web in mitmweb, with --console in mitmproxy. Set AZURE_OPENAI_ENDPOINT before;
    --options lists all settings, in alphabetical order with mitmproxy's
"""


def usage() -> str:
    lines = [f"azure-openai-proxy {each.name} [OPTIONS]\n    {each.summary}; --help lists its options\n" for each in SUBCOMMANDS]
    return USAGE + "".join(lines)


def _misspelled(given: Sequence[str]) -> str | None:
    """The subcommand that the first argument resembles. mitmproxy would take it as a filter of flows, and start."""
    names = [each.name for each in SUBCOMMANDS]
    if given and given[0] in ("help", "version"):
        return f"--{given[0]}"
    return next(iter(difflib.get_close_matches(given[0], names, 1, MIN_SIMILARITY)), None) if given else None


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the subcommand that is the first argument, or start the proxy."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for each in SUBCOMMANDS:
        if given[:1] == [each.name]:
            return _run(each, given)
    if near := _misspelled(given):
        print(f"azure-openai-proxy: {quoting.line(given[0])} is not a subcommand: did you mean {near}?", file=sys.stderr)  # noqa: T201 - a command prints
        return 1
    from . import launcher  # noqa: PLC0415 - loads mitmproxy

    return launcher.main(given) if launcher.INFORMATION_ONLY.isdisjoint(given) else _inform(given)


@closing_early()
def _run(subcommand: Subcommand, given: Sequence[str]) -> int:
    status: int = import_module(subcommand.module).main(given)
    return status


@closing_early()
def _inform(given: Sequence[str]) -> int | None:
    from . import launcher  # noqa: PLC0415 - loads mitmproxy

    if not {"-h", "--help"}.isdisjoint(given):
        print(usage())  # noqa: T201 - help is printed
    elif "--version" in given:
        from azure_openai_proxy.compatibility import own_version  # noqa: PLC0415 - loads mitmproxy

        print(f"Azure OpenAI Proxy: {own_version()}", flush=True)  # noqa: T201 - mitmproxy prints the others
    return launcher.main(given)


if __name__ == "__main__":
    sys.exit(main())  # pragma: no cover - a process of its own
