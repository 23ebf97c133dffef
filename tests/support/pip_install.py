"""`pip install ".[extra]"` of the documents: it fails unless the extras exist and their packages are installed."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

if __name__ == "__main__":
    found = re.fullmatch(r"install \.(?:\[([a-z,]+)\])?", " ".join(sys.argv[1:]))
    if not found:
        sys.exit(f"unknown arguments: {sys.argv[1:]}")
    for extra in (found[1] or "").split(","):
        for requirement in PROJECT["optional-dependencies"][extra] if extra else []:
            distribution(re.split(r"[^\w.-]", requirement)[0])
