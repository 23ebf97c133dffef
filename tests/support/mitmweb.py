"""mitmweb with the addon in it, for end-to-end tests."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from support.processes import MITMWEB, PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PASSWORD", "Web", "mitmweb"]

PASSWORD = "for-this-test"
XSRF = "0123456789abcdef"  # what a page and its requests must agree on


class Web:
    """mitmweb with the addon in it, and its interface."""

    def __init__(self, proxy: Mitmdump, port: int) -> None:
        self.proxy = proxy
        self.url = f"http://127.0.0.1:{port}/?token={PASSWORD}"
        headers = {"x-xsrftoken": XSRF, "cookie": f"_mitmproxy_xsrf={XSRF}; _xsrf={XSRF}"}  # 12.0 has tornado's name for it
        token = {"token": PASSWORD}  # mitmproxy 12.0 takes it in the query alone
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, params=token, timeout=PATIENCE, trust_env=False)

    def flows(self) -> list[dict[str, Any]]:
        return list(self.http.get("/flows").raise_for_status().json())

    def view(self, flow: str, message: str, view: str = "auto") -> str:
        shown = self.http.get(f"/flows/{flow}/{message}/content/{quote(view)}.json").raise_for_status().json()
        return str(shown["text"])

    def command(self, name: str, *arguments: str) -> Any:
        answer = self.http.post(f"/commands/{name}", json={"arguments": arguments}).raise_for_status().json()
        assert "error" not in answer, answer
        return answer["value"]


@contextmanager
def mitmweb(home: Path, confdir: Path, decoy_port: int, **options: object) -> Iterator[Web]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ours = {"web_password": PASSWORD, "web_port": port, "web_open_browser": False}
    with Mitmdump(home, confdir, options=ours | options, command=(MITMWEB,), decoy_port=decoy_port) as proxy:
        proxy.wait_for_log("Web server listening")
        web = Web(proxy, port)
        yield web
        web.http.close()
