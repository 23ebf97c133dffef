"""`azure-openai-proxy [OPTIONS OF MITMDUMP]` starts mitmproxy with the addon, at the configured address.

mitmproxy binds its port before it loads a script. If the script set the address, mitmproxy would first open its default port, and would
fail if that port is in use. The launcher therefore reads the settings first and passes the address as an argument. An invalid
setting ends the start before any port is opened.
"""

from __future__ import annotations

import os
import sys
import tempfile
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
"""The script that mitmproxy loads. It is beside the package, in the repository and in site-packages."""

TOOLS = {"--web": "mitmweb", "--console": "mitmproxy"}
INFORMATION_ONLY = frozenset({"-h", "--help", "--version", "--options", "--commands"})
LISTENING = {"mode": list, "listen_host": str, "listen_port": int}


def arguments(user: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The arguments for mitmproxy: the script and the configured address (unless the user sets one), then the user's arguments.

    Raises:
        SettingsError: a setting is invalid.
    """
    given = sources.command_line(user, Options())
    confdir = (given.sets.get("confdir") or [CONF_DIR])[-1]
    check_confdir(confdir)
    found, file = sources.gather(given, environ, confdir)
    settings = resolve(found, offline="server_replay" in given.names)
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


def check_confdir(confdir: str) -> None:
    """Check that mitmproxy has its CA or can make one; it would fail with a traceback.

    Raises:
        SettingsError: it cannot.
    """
    folder = Path(confdir).expanduser()
    try:
        if (folder / "mitmproxy-ca.pem").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(
            f"{folder} cannot be written ({reason}): set confdir (--set confdir=FOLDER) or HOME to a folder that can."
        ) from None


def main(user: Sequence[str]) -> int | None:
    """Start mitmdump, mitmweb or mitmproxy with the addon. `user` are the arguments of the command line."""
    tool = next((TOOLS[argument] for argument in user if argument in TOOLS), "mitmdump")
    user = [argument for argument in user if argument not in TOOLS]
    if INFORMATION_ONLY.isdisjoint(user):
        try:
            user = arguments(user, os.environ)
        except SettingsError as error:
            print(f"azure-openai-proxy: {error}", file=sys.stderr)  # noqa: T201 - before logging is set up
            return 1
    elif "--help" not in user and "-h" not in user:
        user = ["-s", str(SCRIPT), *user]
    sys.argv[1:] = user  # the addon reads the --set arguments from here
    start = {"mitmdump": tools.mitmdump, "mitmweb": tools.mitmweb, "mitmproxy": tools.mitmproxy}[tool]
    return start(user)
