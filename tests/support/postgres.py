"""A private PostgreSQL server in a temporary directory, on a Unix socket. It runs as an unprivileged user, which initdb requires."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import psycopg

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PASSWORD", "Postgres", "missing"]

PASSWORD = "pass/word-of-the-ledger"
"""A password that URLs contain. The server does not ask for it."""
_ROLE = "ledger"


def _programs() -> Path | None:
    """The directory of initdb and pg_ctl. Debian has one for each version, which is not in PATH."""
    found = shutil.which("initdb")
    places = [*([Path(found).parent] if found else []), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


def missing() -> str | None:
    """Why there is no server, or None."""
    if os.name != "posix":
        return "the server needs Unix sockets and an unprivileged user"
    return None if _programs() else "PostgreSQL is not installed (Debian: apt-get install postgresql)"


class Postgres:
    """A server with any number of schemas. A context manager."""

    def __init__(self) -> None:
        programs = _programs()
        assert programs
        self._programs = programs
        self._user: int | None = None
        self._schemas = 0

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if os.geteuid() == 0:
            import pwd

            names = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
            self._user = names.get("postgres", names["nobody"])
            os.chown(self.folder, self._user, -1)
        self.folder.chmod(0o755)
        self._call("initdb", "--pgdata", str(self._data), "--username", _ROLE, "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\nfsync = off\n"
                "shared_buffers = 16MB\nautovacuum = off\nmax_connections = 40\n"
            )
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        self._call("pg_ctl", "start", "--wait", "--silent", "--pgdata", str(self._data), "--log", str(self.folder / "log"))

    def stop(self) -> None:
        """Stop the server as a crash does: connections are closed without a word. Without effect if it is stopped."""
        self._call("pg_ctl", "stop", "--wait", "--silent", "--mode", "immediate", "--pgdata", str(self._data), check=False)

    def pause(self) -> None:
        """Let the server answer nothing; the kernel still accepts connections."""
        self._paused = [int((self._data / "postmaster.pid").read_text().split()[0])]
        for each in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(each.read_text().rpartition(")")[2].split()[1]) == self._paused[0]:
                    self._paused.append(int(each.parent.name))
        for pid in self._paused:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._paused:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def create(self) -> str:
        """Create a schema, which is faster than a database, and return its URL for SQLAlchemy."""
        self._schemas += 1
        name = f"ledger{self._schemas}"
        with psycopg.connect(host=str(self.folder), user=_ROLE, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"postgresql+psycopg://{_ROLE}:{quote(PASSWORD, safe='')}@/postgres?host={self.folder}&options=-csearch_path%3D{name}"

    def _call(self, program: str, *arguments: str, check: bool = True) -> None:
        # A server that inherits the pipes of its output would keep `run` waiting.
        with (self.folder / "calls").open("a+") as output:
            subprocess.run(
                [str(self._programs / program), *arguments],
                check=check,
                user=self._user,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=60,
            )
