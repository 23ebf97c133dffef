"""A request as it went to Azure, to be sent again by hand: for a shell, for Python, for the openai SDK. Runnable as printed.

The key is not in it but for those who ask: it stands as the environment variable that Azure's own examples use.
"""

from __future__ import annotations

import base64
import json
import pprint
import re
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from .credentials import MASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

__all__ = ["FORMATS", "VARIABLE"]

VARIABLE = "AZURE_OPENAI_API_KEY"
_LONGEST_ARGUMENT = 100_000  # Linux takes 128 KiB

_LEFT_OUT = frozenset({"content-length", "transfer-encoding", "connection", "host", ":authority"})
_OPERATION = re.compile(r"(?P<prefix>.*)/openai/(?:(?P<v1>v1)|deployments/(?P<deployment>[^/]+)|)/?(?P<path>[^?]*)")
_METHODS = {
    "chat/completions": "chat.completions.create",
    "completions": "completions.create",
    "embeddings": "embeddings.create",
    "images/generations": "images.generate",
    "responses": "responses.create",
}


def _headers(request: http.Request) -> list[tuple[str, str]]:
    return [(name, value) for name, value in request.headers.items(multi=True) if name.lower() not in _LEFT_OUT]


def curl(request: http.Request, key: str = "") -> str:
    content = request.raw_content or b""
    lines = [f"curl --request {request.method} {shlex.quote(request.url)}"]
    for name, value in _headers(request):
        if MASK in value and not key:
            quoted = json.dumps(f"{name}: {value}").replace("$", "\\$").replace(MASK, f"${VARIABLE}")
        else:
            quoted = shlex.quote(f"{name}: {value.replace(MASK, key)}")
        lines.append(f"--header {quoted}")
    if "accept-encoding" in request.headers:
        lines.append("--compressed")
    pipe = ""
    if content:
        text = _plain(content)
        if text is None:
            pipe = "base64 --decode <<'END' | "
        lines.append(f"--data-binary {shlex.quote(text) if text is not None else '@-'}")
    command = pipe + " \\\n  ".join(lines)
    return f"{command}\n{base64.encodebytes(content).decode()}END" if pipe else command


def _plain(content: bytes) -> str | None:
    """The body as an argument; None when it cannot be one: it is binary, too long, or would be read as a file's name."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or len(content) > _LONGEST_ARGUMENT or text.startswith("@") else text


def httpx(request: http.Request, key: str = "") -> str:
    headers = "".join(f"        ({name!r}, {_python(value, key)}),\n" for name, value in _headers(request))
    content = f"    content={request.raw_content!r},\n" if request.raw_content else ""
    return (
        "import os\n\nimport httpx\n\nresponse = httpx.request(\n"
        f"    {request.method!r},\n    {request.url!r},\n    headers=[\n{headers}    ],\n{content}    timeout=600,\n)\nprint(response.text)"
    )


def _python(value: str, key: str) -> str:
    """A header's value, or the key, as Python."""
    if MASK not in value:
        return repr(value)
    before = value.replace(MASK, key)
    return (
        repr(before)
        if key
        else f'{value.removesuffix(MASK)!r} + os.environ["{VARIABLE}"]'
        if value != MASK
        else f'os.environ["{VARIABLE}"]'
    )


def openai(request: http.Request, key: str = "") -> str:
    """With the SDK's own method where there is one for the operation, else with its client."""
    path, _, query_text = request.path.partition("?")
    found = _OPERATION.fullmatch(path)
    if not found:
        raise ValueError(f"{path} is none of Azure OpenAI's paths")
    query = {name: values[-1] for name, values in parse_qs(query_text).items()}
    version = query.pop("api-version", "")
    secret = repr(key) if key else f'os.environ["{VARIABLE}"]'
    base = f"{request.url.removesuffix(request.path)}{found['prefix']}"
    if found["v1"]:
        imported = "OpenAI"
        client = f'OpenAI(base_url="{base}/openai/v1", api_key={secret}{_more("default_query", _version(version))})'
    else:
        imported = "AzureOpenAI"
        bearer = "authorization" in request.headers
        client = f'AzureOpenAI(azure_endpoint="{base}", {"azure_ad_token" if bearer else "api_key"}={secret}, api_version="{version}")'
    body = _json(request)
    if found["deployment"] and isinstance(body, dict):
        body = {**body, "model": unquote(found["deployment"])}  # the SDK makes the path of it
    method = _METHODS.get(found["path"])
    if method and isinstance(body, dict) and request.method == "POST":
        arguments = f"**{pprint.pformat(body, width=100, sort_dicts=False)}{_more('extra_query', query)}"
        call = f"client.{method}({arguments})"
    else:
        sent = _more("body", body) + _more("options", {"params": query} if query else None)
        call = f'client.{request.method.lower()}("/{found["path"]}", cast_to=object{sent})'
    shown = "for chunk in answer:\n    print(chunk)" if isinstance(body, dict) and body.get("stream") else "print(answer)"
    return f"import os\n\nfrom openai import {imported}\n\nclient = {client}\nanswer = {call}\n{shown}"


def _version(version: str) -> dict[str, str] | None:
    return {"api-version": version} if version else None


def _more(name: str, value: object) -> str:
    return f", {name}={value!r}" if value else ""


def _json(request: http.Request) -> Any:
    content = request.get_content(strict=False)
    if not content:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("its body is not JSON: export it for curl or httpx") from None


FORMATS: dict[str, Callable[[http.Request, str], str]] = {"curl": curl, "httpx": httpx, "openai": openai}
