"""The permission check of configuration files."""

from __future__ import annotations

import grp
import os
import pwd
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.config import file_trust
from azure_openai_proxy.config.file_trust import Untrusted

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")

OWN, OTHER, PRIVATE, SHARED = 1000, 1001, 1000, 2000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mitm_config.yaml"
    path.write_text("a: b")
    path.chmod(0o644)
    return path


class Users:
    """A fake machine with two users, each with a private group, and one shared group. The process runs as the first user."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.owner = (OWN, PRIVATE)
        self.members: list[str] = []
        users = {0: ("root", 0), OWN: ("own", PRIVATE), OTHER: ("other", SHARED)}
        groups = {PRIVATE: "own", SHARED: "staff", 0: "root"}
        real = os.fstat

        def getpwuid(uid: int) -> Any:
            return SimpleNamespace(pw_name=users[uid][0], pw_gid=users[uid][1])

        def getgrgid(gid: int) -> Any:
            return SimpleNamespace(gr_name=groups[gid], gr_mem=self.members)

        monkeypatch.setattr(pwd, "getpwuid", getpwuid)
        monkeypatch.setattr(grp, "getgrgid", getgrgid)
        monkeypatch.setattr(os, "geteuid", lambda: OWN)
        monkeypatch.setattr(os, "fstat", lambda fd: owned(real(fd), *self.owner))


def owned(found: os.stat_result, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((*found[:4], uid, gid, *found[6:]))


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch, file: Path) -> Users:
    users = Users(monkeypatch)
    real = type(file).lstat
    monkeypatch.setattr(type(file), "lstat", lambda path: owned(real(path), *users.owner))
    return users


@pytest.mark.parametrize(
    "uid, environ, used",
    [
        (OWN, {}, True),
        (0, {}, True),
        (OTHER, {}, False),
        (OTHER, {"SUDO_UID": str(OTHER)}, True),
        (OTHER, {"SUDO_UID": "1002"}, False),
        (OTHER, {"SUDO_UID": ""}, False),
        (OTHER, {"SUDO_UID": "\u0661\u0660\u0660\u0661"}, False),
        (4711, {}, False),
    ],
)
def test_the_owner(uid: int, environ: dict[str, str], used: bool, file: Path, users: Users) -> None:
    """A file of the process's user, root or the sudo user is accepted, and another owner is named, or numbered if unknown."""
    users.owner = (uid, SHARED)
    if used:
        assert b"a: b" == file_trust.read(file, environ)
    else:
        with pytest.raises(Untrusted, match=r"it belongs to (other|user 4711), .* \(own\)"):
            file_trust.read(file, environ)


def test_the_owner_of_a_link_to_it(file: Path, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of a symbolic link is checked too, because the link chooses the file."""
    monkeypatch.setattr(type(file), "lstat", lambda _: SimpleNamespace(st_uid=OTHER))
    with pytest.raises(Untrusted, match="it belongs to other"):
        file_trust.read(file, {})


@pytest.mark.parametrize("mode, used", [(0o644, True), (0o600, True), (0o664, True), (0o666, False), (0o602, False)])
def test_a_world_writable_file(mode: int, used: bool, file: Path) -> None:
    """A file that all users may write is rejected regardless of its owner."""
    file.chmod(mode)
    assert used != file_trust.everybody_writes(file)
    if used:
        assert b"a: b" == file_trust.read(file, {})
    else:
        with pytest.raises(Untrusted, match="all users may write it"):
            file_trust.read(file, {})


@pytest.mark.parametrize(
    "uid, gid, members, doubted",
    [
        (OWN, PRIVATE, [], False),
        (OWN, PRIVATE, ["own"], False),
        (OWN, PRIVATE, ["other"], True),
        (OWN, SHARED, [], True),
        (OTHER, SHARED, [], True),  # the user's primary group, but with another name than the user
        (4711, 4711, [], True),
        (0, 0, [], False),
    ],
)
def test_its_group(
    uid: int, gid: int, members: list[str], doubted: bool, file: Path, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write access of a private group, as with umask 002, is accepted, and that of another group causes a warning."""
    file.chmod(0o664)
    users.members = members
    real = type(file).stat
    monkeypatch.setattr(type(file), "stat", lambda path, **more: owned(real(path, **more), uid, gid))
    assert doubted == ("may write it" in (file_trust.doubts(file) or ""))
    file.chmod(0o644)
    assert file_trust.doubts(file) is None


def test_its_folder(file: Path) -> None:
    """A directory that all users may write causes a warning, unless it is sticky like /tmp."""
    file.parent.chmod(0o777)
    assert "all users may replace it" in str(file_trust.doubts(file))
    file.parent.chmod(0o1777)
    assert file_trust.doubts(file) is None


def test_no_check_on_windows(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, which has no such permissions, nothing is checked."""
    file.chmod(0o666)
    monkeypatch.setattr(file_trust, "POSIX", False)
    assert b"a: b" == file_trust.read(file, {})
    assert (None, False) == (file_trust.doubts(file), file_trust.everybody_writes(file))
