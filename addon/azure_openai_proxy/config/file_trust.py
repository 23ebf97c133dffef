"""Permission check of configuration files. On POSIX the owner must be the proxy's user, root or the user who called sudo, and others may
not write them; a group may, with a warning.

Another user who can write the configuration could redirect the key. On Windows nothing is checked, because `os.stat` does not show
its access control lists.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from . import regular_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Untrusted", "doubts", "everybody_writes", "read"]

POSIX = os.name == "posix"


class Untrusted(ValueError):
    """The file is rejected. The message has the reason and the remedy."""


def read(path: Path, environ: Mapping[str, str]) -> bytes:
    """Read the file.

    Raises:
        Untrusted: all users may write it, or it belongs to another user.
        OSError: it is no regular file, or cannot be read.
    """
    with regular_file.opened(path) as file:
        if POSIX:
            _check(path, os.fstat(file.fileno()), environ)
        return file.read()


def everybody_writes(path: Path) -> bool:
    """Whether all users may write this file. Devices and pipes do not count."""
    mode = path.stat().st_mode
    return POSIX and stat.S_ISREG(mode) and bool(mode & stat.S_IWOTH)


def doubts(path: Path) -> str | None:
    """Why an accepted file may still be changed by other users; None if it may not."""
    if not POSIX:
        return None
    file, folder = path.stat(), path.absolute().parent.stat()
    if file.st_mode & stat.S_IWGRP and not _is_private(file.st_gid, file.st_uid):
        return f"the group {_group(file.st_gid)} may write it (chmod g-w)"
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        return "all users may replace it, because its directory is writable by all (chmod o-w)"
    return None


def _check(path: Path, file: os.stat_result, environ: Mapping[str, str]) -> None:
    if file.st_mode & stat.S_IWOTH:
        raise Untrusted("all users may write it (chmod o-w)")
    trusted = {os.geteuid(), 0}
    if (sudo := environ.get("SUDO_UID", "")).isascii() and sudo.isdigit():
        trusted.add(int(sudo))
    for owner in (file.st_uid, path.lstat().st_uid):  # the owner of a symbolic link chooses its target
        if owner not in trusted:
            raise Untrusted(f"it belongs to {_user(owner)}, who is neither the proxy's user ({_user(os.geteuid())}) nor root (chown)")


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group has its user as the only member, as on systems with umask 002."""
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
