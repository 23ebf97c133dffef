"""Paths that users write."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["expanded"]


def expanded(path: str | Path) -> Path:
    """Return the path with `~` and `~NAME` replaced by the home directory, as in a shell.

    A name that does not exist, or a user without a home directory, leaves it as it is: opening it then fails with an error that names it.
    `Path.expanduser` raises a RuntimeError instead, which names nothing.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - see above
