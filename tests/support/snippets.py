"""Runs Python snippets in processes of their own that need not import the SDK again: each is forked from one that has."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Ran", "Snippets"]

_SERVER = """
import json, os, sys, tempfile, traceback
import httpx, openai

for line in sys.stdin:
    given = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (pid := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(given["cwd"])
            os.environ.update(given["env"])
            status = 0
            try:
                exec(compile(given["text"], "<stdin>", "exec"), {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    print(json.dumps([status, *texts]), flush=True)
"""


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Snippets:
    """The process from which others are forked, with httpx and openai imported and nothing but `env` in its environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, encoding="utf-8"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, text: str, env: Mapping[str, str], cwd: Path) -> Ran:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"text": text, "env": dict(env), "cwd": str(cwd)}) + "\n")
        self._process.stdin.flush()
        return Ran(*json.loads(self._process.stdout.readline()))
