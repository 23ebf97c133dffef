"""Export of an upstream request as runnable code: a curl command, Python with httpx, or Python with the openai SDK.

The key is replaced by the environment variable that Azure's own examples use, unless the user asks for the key.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote

from azure_openai_proxy.api import redaction
from azure_openai_proxy.api.credentials import MASK
from azure_openai_proxy.formats import compression, quoting

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

__all__ = ["FORMATS", "VARIABLE"]

VARIABLE = "AZURE_OPENAI_API_KEY"
_LONGEST_ARGUMENT = 100_000  # Linux takes 128 KiB

_LEFT_OUT = frozenset({"content-length", "transfer-encoding", "connection", "host", ":authority"})
_OPERATION = re.compile(r"(?P<prefix>.*)/openai/(?:(?P<v1>v1)|deployments/(?P<deployment>[^/]+)|)/?(?P<path>[^?]*)")
_METHOD = re.compile("[A-Za-z]+(?:-[A-Za-z]+)*")
_URL = re.compile("https?://[!-~]+")
_VERBS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_METHODS = {
    "chat/completions": "chat.completions.create",
    "completions": "completions.create",
    "embeddings": "embeddings.create",
    "images/generations": "images.generate",
    "responses": "responses.create",
}


def _headers(request: http.Request) -> list[tuple[str, str]]:
    fields = [(name, value) for name, value in request.headers.items(multi=True) if name.lower() not in _LEFT_OUT]
    for name, _ in fields:
        if not quoting.is_token(name):
            raise ValueError(f"{name!r} is not a header name")
    return fields


def _method(request: http.Request) -> str:
    if not _METHOD.fullmatch(request.method):
        raise ValueError("its method is not a plain word")
    return request.method


def _url(request: http.Request) -> str:
    if not _URL.fullmatch(request.url):
        raise ValueError("its URL has invalid characters")
    return request.url


def _masked(name: str, value: str) -> str | None:
    """The text before the mask, if this is a masked key header, otherwise None. In other headers `[key]` is the client's own text."""
    return value.removesuffix(MASK) if value.endswith(MASK) and redaction.is_key_header(name) else None


def curl(request: http.Request, key: str = "") -> str:
    content = request.raw_content or b""
    url = _url(request)
    lines = [f"curl --globoff --path-as-is --request {_method(request)} {quoting.shell(url)}"]
    for name, value in _headers(request):
        before = _masked(name, value)
        if before is not None and not key:
            quoted = quoting.shell_with_variable(f"{name}: {before}", VARIABLE)
        else:
            plain = value if before is None else before + key
            quoted = quoting.shell(f"{name}: {plain}" if plain.strip() else f"{name};")  # curl omits an empty header that has a colon
        lines.append(f"--header {quoted}")
    if "accept-encoding" in request.headers:
        lines.append("--compressed")
    pipe = ""
    if content:
        text = _plain(content)
        if text is None:
            pipe = "base64 --decode <<'END' | "
        lines.append(f"--data-binary {quoting.shell(text) if text is not None else '@-'}")
    command = pipe + " \\\n  ".join(lines)
    return f"{command}\n{base64.encodebytes(content).decode()}END" if pipe else command


def _plain(content: bytes) -> str | None:
    """The body as a command-line argument; None if it has control characters, is too long or starts with `@` (a file name for curl)."""
    if len(content) > _LONGEST_ARGUMENT:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if text.startswith("@") or not quoting.is_safe(text) else text


def httpx(request: http.Request, key: str = "") -> str:
    headers = "".join(f"        ({name!r}, {_python(name, value, key)}),\n" for name, value in _headers(request))
    content = f"    content={request.raw_content!r},\n" if request.raw_content else ""
    method, url = repr(_method(request)), repr(_url(request))
    return (
        "import os\n\nimport httpx\n\nresponse = httpx.request(\n"
        f"    {method},\n    {url},\n    headers=[\n{headers}    ],\n{content}    timeout=600,\n)\nprint(response.text)"
    )


def _python(name: str, value: str, key: str) -> str:
    """A Python expression for a header's value, with the key or its variable."""
    before = _masked(name, value)
    if before is None:
        return repr(value if value.isascii() else value.encode("utf-8", "surrogateescape"))  # httpx accepts non-ASCII values as bytes only
    if key:
        return repr(before + key)
    return f'{before!r} + os.environ["{VARIABLE}"]' if before else f'os.environ["{VARIABLE}"]'


def openai(request: http.Request, key: str = "") -> str:
    """Code with the SDK's method for the operation, if there is one, otherwise with the client's generic `get`, `post` etc."""
    base = _url(request).removesuffix(request.path)
    path, _, query_text = request.path.partition("?")
    found = _OPERATION.fullmatch(path)
    if not found:
        raise ValueError(f"{path} is not a path of Azure OpenAI")
    if request.method not in _VERBS:
        raise ValueError("the SDK has no such method: export it for curl or httpx")
    query = {name: values[-1] for name, values in parse_qs(query_text).items()}
    version = query.pop("api-version", "")
    secret = repr(key) if key else f'os.environ["{VARIABLE}"]'
    base += found["prefix"]
    if found["v1"]:
        imported = "OpenAI"
        client = f"OpenAI(base_url={base + '/openai/v1'!r}, api_key={secret}{_more('default_query', _version(version))})"
    else:
        imported = "AzureOpenAI"
        bearer = "authorization" in request.headers
        client = f"AzureOpenAI(azure_endpoint={base!r}, {'azure_ad_token' if bearer else 'api_key'}={secret}, api_version={version!r})"
    body = _body(request, unquote(found["deployment"] or ""))
    method = _METHODS.get(found["path"])
    if method and body.is_object and request.method == "POST":
        call = f"client.{method}(**{body.text}{_more('extra_query', query)})"
    else:
        sent = (f", body={body.text}" if body.text else "") + _more("options", {"params": query} if query else None)
        call = f"client.{request.method.lower()}({'/' + found['path']!r}, cast_to=object{sent})"
    imports = "import json\nimport os" if body.before else "import os"
    return f"{imports}\n\nfrom openai import {imported}\n\n{body.before}client = {client}\nanswer = {call}\n{body.shown}"


def _version(version: str) -> dict[str, str] | None:
    return {"api-version": version} if version else None


def _more(name: str, value: object) -> str:
    return f", {name}={value!r}" if value else ""


class _Body(NamedTuple):
    """A JSON body as Python code."""

    text: str = ""  # an expression
    before: str = ""  # statements that the expression needs
    is_object: bool = False
    shown: str = "print(answer)"


_STREAM = "for chunk in answer:\n    print(chunk)"
_MAYBE_STREAM = 'for chunk in answer if body.get("stream") else [answer]:\n    print(chunk)'


def _body(request: http.Request, deployment: str) -> _Body:
    """The body as code. Its model becomes the `deployment`, because the SDK builds the path from the model."""
    content = compression.content_or_nothing(request)
    if not content:
        return _Body()
    if len(content) > _LONGEST_ARGUMENT:
        return _read(content, deployment, is_object=content.lstrip().startswith(b"{"))  # parsing it would block the event loop
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("its body is not JSON: export it for curl or httpx") from None
    is_object = isinstance(value, dict)
    if is_object and deployment:
        value["model"] = deployment
    try:
        text = quoting.python(value)
    except ValueError:  # there is no literal for it, but json.loads accepts it
        return _read(content, deployment, is_object=is_object)
    return _Body(text, is_object=is_object, shown=_STREAM if is_object and value.get("stream") else "print(answer)")


def _read(content: bytes, deployment: str, *, is_object: bool) -> _Body:
    """The body as a string that the exported code parses."""
    model = f'body["model"] = {deployment!r}\n' if is_object and deployment else ""
    return _Body("body", f"body = json.loads({content!r})\n{model}", is_object, _MAYBE_STREAM if is_object else "print(answer)")


FORMATS: dict[str, Callable[[http.Request, str], str]] = {"curl": curl, "httpx": httpx, "openai": openai}
