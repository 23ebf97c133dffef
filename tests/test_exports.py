"""Exported requests run as they are printed, and send what the proxy sent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from mitmproxy import http

from azure_openai_proxy import exports
from azure_openai_proxy.exports import VARIABLE

if TYPE_CHECKING:
    from azure_simulator import Simulator

CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": 'it\'s "$HOME" é\n\\'}]}).encode()
DATED = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"


def request(url: str, path: str, body: bytes = CHAT, method: str = "POST", **headers: str) -> http.Request:
    made = http.Request.make(method, url + path, body)
    made.headers.update({"content-type": "application/json", "api-key": "[key]", "x-more": 'a "$quoted" one', **headers})
    return made


def run(format: str, text: str, key: str) -> str:
    command = ["bash"] if format == "curl" else [sys.executable]
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"} | ({VARIABLE: key} if key else {})
    ran = subprocess.run(command, input=text, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert 0 == ran.returncode, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("included", [False, True], ids=["variable", "key"])
@pytest.mark.parametrize(
    ("path", "body"),
    [(DATED, CHAT), ("/openai/v1/chat/completions", CHAT), (DATED, CHAT.replace(b"it", b"x" * 120_000)), ("/openai/v1/files?limit=1", b"")],
    ids=["dated", "v1", "long", "get"],
)
@pytest.mark.parametrize("format", ["curl", "httpx", "openai"])
def test_it_runs(format: str, path: str, body: bytes, included: bool, azure: Simulator) -> None:
    """From a shell or from Python, with the key in a variable or in the text: Azure gets the same request, and answers."""
    if format == "curl" and not shutil.which("curl"):
        pytest.skip("no curl")
    exported = exports.FORMATS[format](request(azure.http_url, path, body, "POST" if body else "GET"), azure.key if included else "")
    assert included == (azure.key in exported)
    run(format, exported, "" if included else azure.key)
    got = azure.wait_for_request()
    assert (path, 200) == (got.path, got.status)
    assert not body or json.loads(body) == got.json
    assert format == "openai" or body == got.body
    assert format == "openai" or 'a "$quoted" one' == got.header("x-more")


@pytest.mark.parametrize("format", ["curl", "httpx"])
def test_a_body_of_any_bytes_runs(format: str, azure: Simulator) -> None:
    """A form with a file in it."""
    body = b"--X\r\n\x00\xff'\"\r\n--X--\r\n"
    exported = exports.FORMATS[format](
        request(azure.http_url, DATED, body, **{"content-type": "multipart/form-data; boundary=X", "accept-encoding": "gzip"}), ""
    )
    run(format, exported, azure.key)
    assert body == azure.wait_for_request().body


def test_a_bearer_stays_one() -> None:
    """An Entra token goes where one was, and the SDK is told that it is one."""
    made = request("https://r.openai.azure.com", DATED, authorization="Bearer [key]")
    del made.headers["api-key"]
    assert f'--header "authorization: Bearer ${VARIABLE}"' in exports.curl(made)
    assert f"'Bearer ' + os.environ[\"{VARIABLE}\"]" in exports.httpx(made)
    assert f'azure_ad_token=os.environ["{VARIABLE}"]' in exports.openai(made)


def test_the_sdk_is_asked_as_a_person_would_ask_it() -> None:
    """By its own method where there is one, streams read piece by piece; an api-version on v1, and a query, stay."""
    streaming = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
    v1 = exports.openai(request("https://r.openai.azure.com", "/apim/openai/v1/responses?api-version=preview&a=b", streaming))
    assert "client.responses.create(**{'model': 'm', 'input': 'hi', 'stream': True}, extra_query={'a': 'b'})" in v1
    assert 'base_url="https://r.openai.azure.com/apim/openai/v1"' in v1
    assert "default_query={'api-version': 'preview'}" in v1
    assert "for chunk in answer:" in v1


@pytest.mark.parametrize(("path", "body"), [("/nothing", CHAT), (DATED, b"\x00")], ids=["another path", "no JSON"])
def test_what_the_sdk_cannot_send_is_said(path: str, body: bytes) -> None:
    """With a reason, and what to use instead."""
    with pytest.raises(ValueError, match=r"none of Azure OpenAI's paths|not JSON"):
        exports.openai(request("https://r.openai.azure.com", path, body))
