"""Who may change a file that the proxy obeys: on POSIX only its owner, who must be the proxy's user or root.

Another user who can write the configuration decides where the key goes. On Windows nothing is checked: permissions there are lists that
`os.stat` does not show.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Untrusted", "doubts", "everybody_writes", "read"]

POSIX = os.name == "posix"


class Untrusted(ValueError):
    """The file is not used; the message says why, and how to change that."""


def read(path: Path, environ: Mapping[str, str]) -> bytes:
    """What stands in the file.

    Raises:
        Untrusted: everybody may write it, or it belongs to another user.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if POSIX:
            _check(path, os.fstat(file.fileno()), environ)
        return file.read()


def everybody_writes(path: Path) -> bool:
    """Whether any user may change this file; a device or a pipe is none."""
    mode = path.stat().st_mode
    return POSIX and stat.S_ISREG(mode) and bool(mode & stat.S_IWOTH)


def doubts(path: Path) -> str | None:
    """Why a file that is used is less safe than its owner may think; None: it is not."""
    if not POSIX:
        return None
    file, folder = path.stat(), path.absolute().parent.stat()
    if file.st_mode & stat.S_IWGRP and not _is_private(file.st_gid, file.st_uid):
        return f"the group {_group(file.st_gid)} may write it (chmod g-w)"
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        return "everybody may replace it, because its folder is writable by all (chmod o-w)"
    return None


def _check(path: Path, file: os.stat_result, environ: Mapping[str, str]) -> None:
    if file.st_mode & stat.S_IWOTH:
        raise Untrusted("everybody may write it (chmod o-w)")
    trusted = {os.geteuid(), 0}
    if (sudo := environ.get("SUDO_UID", "")).isascii() and sudo.isdigit():
        trusted.add(int(sudo))
    for owner in (file.st_uid, path.lstat().st_uid):  # of a symbolic link, who says where it leads
        if owner not in trusted:
            raise Untrusted(f"it belongs to {_user(owner)}, who is neither the proxy's user ({_user(os.geteuid())}) nor root (chown)")


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group has its user as its only member, as where the umask is 002."""
    import grp  # noqa: PLC0415 - POSIX only, as is pwd
    import pwd  # noqa: PLC0415

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    import pwd  # noqa: PLC0415 - POSIX only

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    import grp  # noqa: PLC0415 - POSIX only

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
