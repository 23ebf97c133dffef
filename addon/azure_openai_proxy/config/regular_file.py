"""Files that must be regular ones: to open a pipe waits for its writer, and a device may have no end."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["opened"]


def opened(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it is a directory, a pipe or a device, or cannot be read. `strerror` has the reason.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.open("rb")
