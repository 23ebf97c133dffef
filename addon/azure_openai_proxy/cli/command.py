"""The command `azure-openai-proxy`: `env` and `doctor` are for the client's side, everything else starts the proxy.

A subcommand is one row of `SUBCOMMANDS`. Its module is imported when it is called, so that `env` does not load mitmproxy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

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
)
USAGE = """\
azure-openai-proxy [--web | --console] [OPTIONS OF MITMDUMP, MITMWEB OR MITMPROXY]
    start the proxy in mitmdump; with --web in mitmweb, with --console in mitmproxy
"""


def usage() -> str:
    lines = [f"azure-openai-proxy {each.name} [OPTIONS]\n    {each.summary}; --help lists its options\n" for each in SUBCOMMANDS]
    return USAGE + "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the subcommand that is the first argument, or start the proxy."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for each in SUBCOMMANDS:
        if given[:1] == [each.name]:
            status: int | None = import_module(each.module).main(given)
            return status
    if not {"-h", "--help"}.isdisjoint(given):
        print(usage())  # noqa: T201 - help is printed
    from . import launcher  # noqa: PLC0415 - loads mitmproxy

    return launcher.main(given)


if __name__ == "__main__":
    sys.exit(main())  # pragma: no cover - a process of its own
