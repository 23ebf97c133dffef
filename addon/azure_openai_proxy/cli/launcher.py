"""`azure-openai-proxy [OPTIONS OF MITMDUMP]` starts mitmproxy with the addon in it, listening where the settings say.

mitmproxy binds its port before it loads a script, so an address from the environment or the file can move it only
afterwards: its own port is open for a moment, and if that is taken it does not start at all. Here the address is among the
arguments from the beginning. A bad setting ends the start before there is anything to stop.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mitmproxy.options import CONF_DIR, Options
from mitmproxy.tools import main as tools

from azure_openai_proxy.config import runtime, sources
from azure_openai_proxy.config.settings import resolve
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SCRIPT", "arguments", "main"]

SCRIPT = Path(__file__).resolve().parents[2] / "azure_openai.py"
"""What mitmproxy loads: beside the package in the repository and in site-packages alike."""

TOOLS = {"--web": "mitmweb", "--console": "mitmproxy"}
ONLY_TELLS = frozenset({"-h", "--help", "--version", "--options", "--commands"})
LISTENING = {"mode": list, "listen_host": str, "listen_port": int}


def arguments(user: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The user's arguments with ours before them: the script, and where to listen unless they say so themselves.

    Raises:
        SettingsError: a setting that cannot be used.
    """
    given = sources.command_line(user, Options())
    found, file = sources.gather(given, environ, (given.sets.get("confdir") or [CONF_DIR])[-1])
    settings = resolve(found, offline="server_replay" in given.names)
    ours = ["-s", str(SCRIPT)]
    modes = given.modes
    for name, type in LISTENING.items():
        value = file.values.get(name)
        if name in given.names or not isinstance(value, type):
            continue  # what the file has wrong the addon tells: it knows all of mitmproxy's options
        items = value if isinstance(value, list) else [value]
        ours += [text for item in items for text in (f"--{name.replace('_', '-')}", str(item))]
        modes = list(map(str, items)) if name == "mode" else modes
    # --listen-port is for all modes at once: with several, the addon moves the one that it is meant for
    if settings.address and not given.listens and runtime.movable(modes or ["regular"]):
        ours += ["--listen-host", settings.address.host, "--listen-port", str(settings.address.port)]
    return [*ours, *user]


def main(user: Sequence[str]) -> int | None:
    """Start mitmproxy's tool with the addon. `user` are the arguments of the command line."""
    tool = next((TOOLS[argument] for argument in user if argument in TOOLS), "mitmdump")
    user = [argument for argument in user if argument not in TOOLS]
    if ONLY_TELLS.isdisjoint(user):
        try:
            user = arguments(user, os.environ)
        except SettingsError as error:
            print(f"azure-openai-proxy: {error}", file=sys.stderr)  # noqa: T201 - before there is a log
            return 1
    elif "--help" not in user and "-h" not in user:
        user = ["-s", str(SCRIPT), *user]
    sys.argv[1:] = user  # the addon reads there what --set says
    start = {"mitmdump": tools.mitmdump, "mitmweb": tools.mitmweb, "mitmproxy": tools.mitmproxy}[tool]
    return start(user)
