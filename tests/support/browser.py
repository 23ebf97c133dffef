"""A headless Chromium, driven through its own debugging protocol."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.sync.client import connect

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["CHROMIUM", "Browser", "browser"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    def __init__(self, debugger: str) -> None:
        self._at = urlsplit(debugger)

    def run(self, page: str, script: str) -> Any:
        """What the promise that `script` gives comes to, on that page."""
        connection = http.client.HTTPConnection(str(self._at.hostname), self._at.port, timeout=PATIENCE)
        connection.request("PUT", "/json/new?about:blank")
        target = json.loads(connection.getresponse().read())["webSocketDebuggerUrl"]
        connection.close()
        with connect(target, proxy=None, max_size=None) as tab:
            self._call(tab, "Page.navigate", url=page)  # answered when the page has begun: no script runs in the blank one before it
            self._evaluate(tab, "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")
            return self._evaluate(tab, script)

    def _evaluate(self, tab: Any, expression: str) -> Any:
        result = self._call(tab, "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _call(self, tab: Any, method: str, **params: Any) -> Any:
        tab.send(json.dumps({"id": 1, "method": method, "params": params}))
        answer = json.loads(tab.recv(PATIENCE))
        assert "result" in answer, answer
        return answer["result"]


@contextmanager
def browser(folder: Path, ca: Path | None, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Browser]:
    """One that trusts `ca`, with `folder` for its own."""
    if ca:
        key = x509.load_pem_x509_certificate(ca.read_bytes()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        arguments = (f"--ignore-certificate-errors-spki-list={base64.b64encode(hashlib.sha256(key).digest()).decode()}", *arguments)
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", *arguments, "about:blank"),
    ]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        try:
            lines = iter(process.stderr)
            found = next(filter(None, (re.search(r"DevTools listening on (ws://\S+)", line) for line in lines)))
            yield Browser(found[1])
        finally:
            process.terminate()
            process.stderr.read()  # it ends when the last of its processes has
