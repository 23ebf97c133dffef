"""The shell of a person who follows the documents: `azure-openai-proxy` is installed, and the home is their own."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

from support.processes import MITMDUMP, ROOT

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["installed"]

PYTHON = f"PYTHONPATH={shlex.quote(str(ROOT / 'addon'))} exec {shlex.quote(sys.executable)}"
TOOLS = {
    "azure-openai-proxy": f"{PYTHON} -m azure_openai_proxy.cli.command",
    "mitmdump": f"exec {shlex.quote(MITMDUMP)}",
    "python": PYTHON,
    "pip": f"exec {shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tests' / 'support' / 'pip_install.py'))}",
}


def installed(home: Path) -> dict[str, str]:
    """The environment of such a shell. What pip would have installed is this repository and the mitmproxy of the tests: `pip` checks it."""
    bin = home / "bin"
    bin.mkdir(parents=True, exist_ok=True)
    for name, command in TOOLS.items():
        (bin / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
        (bin / name).chmod(0o755)
    return {"PATH": f"{bin}:{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
