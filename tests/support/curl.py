"""curl as a client: it can come by every way there is, and it can be run inside a network namespace."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Answer", "Curl", "events"]

_ENVIRONMENT = {"PATH": os.environ["PATH"]}  # no proxy variables
_TAIL = "\n%{http_code} %{http_version} %{http_connect} %{errormsg}"


class Answer(NamedTuple):
    status: int  # 0: there was none
    http: str  # "1.1" or "2"
    connect: int  # what the proxy said to CONNECT; 0: it was not asked
    error: str  # curl's own
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Curl:
    """curl with these arguments; `prefix` is the command that it runs under."""

    arguments: Sequence[str] = ()
    prefix: Sequence[str] = ()

    def _command(self, *more: str) -> list[str]:
        # -q: no .curlrc; --noproxy: no proxy of the environment
        return [*self.prefix, "curl", "-qsS", "--noproxy", "", "-m", str(PATIENCE), *self.arguments, *more]

    def __call__(self, *more: str) -> Answer:
        done = subprocess.run(
            self._command("-w", _TAIL, *more),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            env=_ENVIRONMENT,
            check=False,
        )
        body, _, tail = done.stdout.rpartition("\n")
        status, version, connect, error = tail.split(" ", 3)
        return Answer(int(status), version, int(connect), error, body)

    @contextmanager
    def lines(self, *more: str) -> Iterator[Iterator[str]]:
        """The answer line by line, each as it arrives."""
        with subprocess.Popen(self._command("-N", *more), stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT) as process:
            assert process.stdout
            try:
                yield (line.rstrip("\n") for line in process.stdout)
            finally:
                process.kill()


def events(lines: Iterator[str]) -> Iterator[str]:
    """What the events of a stream carry."""
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
