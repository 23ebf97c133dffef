"""A real Prometheus that scrapes addresses under test, and promtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from .processes import PATIENCE
from .prometheus_rules import ALERTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = ["MISSING", "Prometheus", "fetch", "promtool"]

MISSING = (
    None if shutil.which("prometheus") and shutil.which("promtool") else "Prometheus is not installed (Debian: apt-get install prometheus)"
)
"""Why there is no Prometheus, or None."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_CONFIGURATION = """
global: {{scrape_interval: 300ms, scrape_timeout: 300ms, evaluation_interval: 300ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: azure-openai-proxy
    static_configs: [{{targets: {targets}}}]
"""


def fetch(url: str) -> str:
    with _OPENER.open(url, timeout=PATIENCE) as response:
        text: str = response.read().decode()
        return text


def promtool(*arguments: str, stdin: str | None = None) -> str:
    """The output of `promtool`, which must succeed."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """Scrapes `targets` (HOST:PORT) several times a second, with the alert rules of deploy/. A context manager."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self._folder = folder
        self._targets = targets
        self._address: str | None = None
        self._printed: list[str] = []
        self._listens = threading.Event()

    def __enter__(self) -> Self:
        file = self._folder / "prometheus.yml"
        file.write_text(_CONFIGURATION.format(rules=ALERTS, targets=json.dumps(list(self._targets))))
        command = [
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listens.wait(PATIENCE), self._printed
        assert self._address, self._printed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._printed.append(line)
            if found := re.search(r'msg="Listening on".*?address=(\S+)', line):
                self._address = found[1]
                self._listens.set()
        self._listens.set()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The value of an expression now: the labels and the number of each series."""
        answer = self._api("query", query=expression)
        assert "vector" == answer["resultType"]
        return [(one["metric"], float(one["value"][1])) for one in answer["result"]]

    def wait_for(self, expression: str, *, timeout: float = PATIENCE) -> list[tuple[dict[str, str], float]]:
        """The result of an expression, once it has one."""
        until = time.monotonic() + timeout
        while not (found := self.query(expression)):
            assert time.monotonic() < until, f"{expression} has no data"
            time.sleep(0.1)
        return found

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._api("targets")["activeTargets"]
        return found

    def _api(self, name: str, **arguments: str) -> Any:
        answer = json.loads(fetch(f"http://{self._address}/api/v1/{name}?{urllib.parse.urlencode(arguments)}"))
        assert "success" == answer["status"], answer
        return answer["data"]
