"""Settings that work and are careless with the key, each named once when the proxy starts."""

from __future__ import annotations

import difflib
import ipaddress
from typing import TYPE_CHECKING

from . import file_trust
from .options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .settings import Found, Settings

__all__ = ["careless", "unread"]

NEAR = 0.95
"""How alike a variable's name must be to one of ours to be taken for a slip. Other programs have AZURE_OPENAI_ variables of their own."""


def careless(settings: Settings, found: Mapping[str, Found], file: Path | None, *, ssl_insecure: bool) -> Iterator[str]:
    """A line for each such setting."""
    bases = dict.fromkeys([settings.passthrough_endpoint] if settings.mode == "openai" else [backend.base for backend in settings.backends])
    for base in bases:
        if base.scheme == "http" and not is_loopback(base.host):
            yield f"Keys and prompts go to {base} unencrypted: use https://, or a tunnel that ends on this machine."
    if (token := found.get("azure_openai_token")) and token.where == "--set":
        yield (
            "azure_openai_token is on the command line, where every user of this machine can read it: "
            "set AZURE_OPENAI_TOKEN, or write it into the configuration file."
        )
    if ssl_insecure and any(base.scheme == "https" for base in bases):
        yield "ssl_insecure: Azure's certificate is not verified, so whoever is on the way to it can read keys and prompts."
    if file and (doubt := file_trust.doubts(file)):
        yield f"{file}: {doubt}. Who writes it decides where the key goes."


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return f".{host.lower().rstrip('.')}".endswith(".localhost")


def unread(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each environment variable whose name is nearly one of ours; numbered ones may be meant for `${NAME}` in the file."""
    known = [variable for option in OPTIONS for variable in option.variables]
    for name in environ:
        if name in known or not name.upper().startswith("AZURE_OPENAI_") or name[-1:].isdigit():
            continue
        if near := difflib.get_close_matches(name.upper(), known, 1, NEAR):
            yield f"The environment variable {name} is not read: did you mean {near[0]}?"
