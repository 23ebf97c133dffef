"""`azure-openai-proxy [OPTIONS OF MITMDUMP]` starts mitmproxy with the addon, at the configured address.

mitmproxy binds its port before it loads a script. If the script set the address, mitmproxy would first open its default port, and would
fail if that port is in use. The launcher therefore reads the settings first and passes the address as an argument. An invalid
setting ends the start before any port is opened.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mitmproxy.options import CONF_DIR, Options
from mitmproxy.tools import main as tools

from azure_openai_proxy.config import runtime, sources, startup_warnings
from azure_openai_proxy.config.confdir import check_confdir
from azure_openai_proxy.config.settings import resolve
from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SCRIPT", "arguments", "main"]

SCRIPT = Path(__file__).resolve().parents[2] / "azure_openai.py"
"""The script that mitmproxy loads. It is beside the package, in the repository and in site-packages."""

TOOLS = {"--web": "mitmweb", "--console": "mitmproxy"}
INFORMATION_ONLY = frozenset({"-h", "--help", "--version", "--options", "--commands"})
READS_FILE = re.compile("-[nqv]*r|--rfile")
"""The option for a flow file, also after short options without a value, as in `-nr`."""
LISTENING = {"mode": list, "listen_host": str, "listen_port": int}


def arguments(user: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The arguments for mitmproxy: the script and the configured address (unless the user sets one), then the user's arguments.

    Raises:
        SettingsError: a setting is invalid, or there is no file of flows to read.
    """
    given = sources.command_line(user, Options())
    confdir = (given.sets.get("confdir") or [CONF_DIR])[-1]
    check_confdir(confdir)
    found, file = sources.gather(given, environ, confdir)
    shows_file = any(map(READS_FILE.fullmatch, user))
    for flag, argument in itertools.pairwise(user):
        if READS_FILE.fullmatch(flag) and argument != "-":  # mitmdump's standard input
            _check_flows(expanded(argument))
    settings = resolve(found, offline=shows_file or not given.names.isdisjoint({"server_replay", "rfile"}))
    ours = ["-s", str(SCRIPT)]
    modes = given.modes
    for name, type in LISTENING.items():
        value = file.values.get(name)
        if name in given.names or not isinstance(value, type):
            continue  # the addon reports a wrong type, since it has all of mitmproxy's options
        items = value if isinstance(value, list) else [value]
        ours += [text for item in items for text in (f"--{name.replace('_', '-')}", str(item))]
        modes = list(map(str, items)) if name == "mode" else modes
    # --listen-port applies to all modes. With several modes the addon sets the address of the one that it is meant for.
    if settings.address and not given.listens and runtime.movable(modes or ["regular"]):
        ours += ["--listen-host", settings.address.host, "--listen-port", str(settings.address.port)]
    return [*ours, *user]


def _check_flows(path: Path) -> None:
    """Refuse what mitmproxy reports with a traceback. It reads pipes too."""
    if path.is_dir():
        raise SettingsError(f"--rfile: {path} cannot be read: it is a directory")
    if not path.exists():
        raise SettingsError(f"--rfile: {path} cannot be read: there is no such file")


def main(user: Sequence[str]) -> int | None:
    """Start mitmdump, mitmweb or mitmproxy with the addon. `user` are the arguments of the command line."""
    tool = next((TOOLS[argument] for argument in user if argument in TOOLS), "mitmdump")
    user = [argument for argument in user if argument not in TOOLS]
    sys.argv[1:] = user  # the addon reads the user's arguments from here: those of the launcher do not override the file
    if INFORMATION_ONLY.isdisjoint(user):
        try:
            user = arguments(user, os.environ)
        except SettingsError as error:
            hints = "".join(f" ({hint})" for hint in startup_warnings.unread(os.environ))
            print(f"azure-openai-proxy: {error}{hints}", file=sys.stderr)  # noqa: T201 - before logging is set up
            return 1
    elif "--help" not in user and "-h" not in user:
        user = ["-s", str(SCRIPT), *user]
    start = {"mitmdump": tools.mitmdump, "mitmweb": tools.mitmweb, "mitmproxy": tools.mitmproxy}[tool]
    return start(user)
