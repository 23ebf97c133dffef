"""Warnings about valid settings that put a secret at risk, or are probably not meant."""

from __future__ import annotations

import difflib
import ipaddress
from typing import TYPE_CHECKING

from azure_openai_proxy.api.operation import TIERS

from . import file_trust
from .options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from .prices import PriceFile
    from .settings import Found, Settings

__all__ = ["careless", "forgetful", "ignored_proxy", "is_loopback", "keyless", "unknown_tiers", "unread"]

MIN_SIMILARITY = 0.95
"""Least similarity of a variable's name to an option's for a warning. Other programs also have AZURE_OPENAI_ variables."""


def careless(settings: Settings, found: Mapping[str, Found], file: Path | None, *, ssl_insecure: bool) -> Iterator[str]:
    """One warning for each setting that puts the key at risk."""
    bases = dict.fromkeys([settings.passthrough_endpoint] if settings.mode == "openai" else [backend.base for backend in settings.backends])
    for base in bases:
        if base.scheme == "http" and not is_loopback(base.host):
            yield f"Keys and prompts go to {base} unencrypted: use https://, or a tunnel that ends on this machine."
    if (token := found.get("azure_openai_token")) and token.where == "--set":
        yield (
            "azure_openai_token is on the command line, where every user of this machine can read it: "
            "set AZURE_OPENAI_TOKEN, or write it into the configuration file."
        )
    if (
        token
        and token.raw
        and any(backend.entra and not backend.token for backend in settings.backends)
        and "azure_openai_backends" not in found
    ):
        yield "azure_openai_token is not used, because azure_openai_entra is set: remove one of them."
    if (ledger := found.get("azure_openai_ledger")) and ledger.where == "--set" and ":" in _user(settings.ledger):
        yield (
            "azure_openai_ledger has a password on the command line, where every user of this machine can read it: "
            "set AZURE_OPENAI_LEDGER, or write it into the configuration file."
        )
    if (state := found.get("azure_openai_shared_state")) and state.where == "--set" and ":" in _user(settings.shared_state):
        yield (
            "azure_openai_shared_state has a password on the command line, where every user of this machine can read it: "
            "set AZURE_OPENAI_SHARED_STATE, or write it into the configuration file."
        )
    if ssl_insecure and any(base.scheme == "https" for base in bases):
        yield "ssl_insecure: Azure's certificate is not verified, so an attacker on the network can read keys and prompts."
    if file and (doubt := file_trust.doubts(file)):
        yield f"{file}: {doubt}. A user who can change it can redirect the key."


def forgetful(settings: Settings) -> Iterator[str]:
    """A line if the sums of budgets are lost at the end of the process."""
    budgets = [*(client.budget for client in settings.clients), *(group.budget for group in settings.groups)]
    if not settings.ledger and any(budgets):
        yield "Budgets begin anew at each start, because there is no ledger: set azure_openai_ledger to keep their sums."


def keyless(settings: Settings) -> Iterator[str]:
    """A line for each backend that no client can use, because the keys of clients are not Azure's."""
    for backend in settings.backends if settings.keys_required else ():
        if not (backend.token or backend.entra):
            yield f"The backend {backend.name} has no key, and the keys of clients are not Azure's: set azure_openai_token."


def unknown_tiers(prices: PriceFile) -> Iterator[str]:
    """A line for each tier that no response is known to have. It may be misspelled, or newer than this version."""
    known = sorted({*TIERS, "default", "batch"})
    seen: dict[str, str] = {}  # the name of a model with each tier
    for name, model in prices.models.items():
        for tiers in (model.tiers, *(zone.tiers for zone in model.zones.values())):
            seen |= dict.fromkeys(tiers, name)
    for tier, name in seen.items():
        if tier not in known:
            near = difflib.get_close_matches(tier.lower(), known, 1, 0.6)
            right = f"did you mean {near[0]}?" if near else f"known ones are {', '.join(known)}."
            yield f"azure_openai_prices ({prices.path}): {name}: tiers: {tier!a} is not a known tier: {right}"


def _user(url: str) -> str:
    """The user of a URL, with a colon and the password if there is one."""
    return url.rpartition("@")[0].partition("://")[2]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or a name. A name that is looked up may be any machine's."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return f".{host.lower().rstrip('.')}".endswith(".localhost")


def ignored_proxy(environ: Mapping[str, str], modes: Iterable[str], listen_port: int | None) -> Iterator[str]:
    """A line if the environment names a proxy, which requests to Azure do not use. One with this proxy's address is for clients."""
    if any(mode.startswith("upstream:") for mode in modes):
        return
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        if not (value := environ.get(name)):
            continue
        host, _, port = value.rpartition("@")[2].rpartition("//")[2].rstrip("/").rpartition(":")
        if not is_loopback(host) or port != str(listen_port or 8080):
            yield (
                f"{name} is set and is ignored: the proxy connects to Azure directly. "
                "To go through that proxy, start with --mode upstream:http://HOST:PORT (and --upstream-auth USER:PASSWORD)."
            )
            return


def unread(environ: Mapping[str, str]) -> Iterator[str]:
    """One warning for each environment variable that is probably misspelled. Numbered ones may be used as `${NAME}` in the file."""
    known = [variable for option in OPTIONS for variable in option.variables]
    for name in environ:
        if name in known or not name.upper().startswith("AZURE_OPENAI_") or name[-1:].isdigit():
            continue
        if near := difflib.get_close_matches(name.upper(), known, 1, MIN_SIMILARITY):
            yield f"The environment variable {name} is not read: did you mean {near[0]}?"
