"""Diagnosis of a client's connection, step by step, with a remedy for each failure. It does not need mitmproxy.

The key is sent only after the server has answered `/healthz` as this proxy does, so that another service at that address does not
receive it. A program that imitates the proxy can still receive it: only TLS with a CA that the client trusts prevents that.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MOST", "OPENAI", "PATIENCE", "Finding", "Setup", "examine", "split"]

OPENAI = "https://api.openai.com/v1"
PATIENCE = 30.0
PORTS = {"http": 80, "https": 443}
ENV = 'eval "$(azure-openai-proxy env)"'
MARK = "x-azure-openai-proxy"
"""A response header of the proxy's `/healthz`, by which the proxy is recognised."""
WITHOUT_CHAT = re.compile("whisper|tts|transcribe|embedding|dall-e|image|sora|realtime|moderation")
"""Parts of the names of models that answer no chat."""
HOST = re.compile(r"[\w.:%-]+")
MOST = 4 << 20
"""Bytes of a response that are read."""


def split(url: str) -> SplitResult:
    """Parse a base URL or a proxy's URL.

    Raises:
        ValueError: `url` is not an http or https URL, or has spaces or control characters.
    """
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname or not HOST.fullmatch(parts.hostname) or " " in url or not url.isprintable():
        raise ValueError("write it as http://localhost:8080")
    parts.port  # noqa: B018 - raises ValueError if it is not a number
    return parts


class Setup(NamedTuple):
    """The client's configuration."""

    base: str
    proxy: str | None
    ca: str | None
    key: str

    def __repr__(self) -> str:
        return f"Setup({self.base})"


class Finding(NamedTuple):
    ok: bool
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n      → {quoting.line(self.remedy)}" if self.remedy else ""
        return f"{'ok  ' if self.ok else 'FAIL'}  {quoting.line(self.what)}{remedy}"


# Failures of a completion: status, a part of the error's code, the remedy.
REMEDIES = (
    (401, "", "the key is wrong: set OPENAI_API_KEY to your key for the proxy, or to Azure's key if the proxy has none of its own"),
    (
        403,
        "",
        "access is denied: assign the role Cognitive Services OpenAI User, or let the resource's network rules admit the proxy",
    ),
    (
        404,
        "model_not_found",
        "there is no such deployment: use the name of a deployment, or map the model: AZURE_OPENAI_MODEL_MAPPER={model}=DEPLOYMENT",
    ),
    (404, "", "this is not a path of the API: the base URL ends with /v1, as in http://localhost:8080/v1"),
    (429, "", "Azure's rate limit is reached: retry later, or raise the deployment's quota"),
    (502, "", "the proxy cannot connect to Azure: check its AZURE_OPENAI_ENDPOINT, its DNS and its network"),
    (503, "", "no backend is usable now: see the proxy's log"),
)


def examine(setup: Setup, models: Sequence[str] | None = None) -> Iterator[Finding]:
    """Run the steps and yield their findings, until a step fails."""
    try:
        base = split(setup.base)
    except ValueError:
        yield Finding(ok=False, what=f"base URL {setup.base}", remedy="write it as http://localhost:8080/v1")
        return
    try:
        split(setup.proxy or setup.base)
    except ValueError:
        yield Finding(ok=False, what=f"proxy {setup.proxy}", remedy="write HTTPS_PROXY as http://localhost:8080")
        return
    if base.hostname == "api.openai.com" and not setup.proxy:
        yield Finding(False, "no proxy is configured", f"neither OPENAI_BASE_URL nor HTTPS_PROXY names it: {ENV}")  # noqa: FBT003
        return
    for step in (_reaches, _trusts, _is_the_api):
        finding = step(setup, base)
        yield finding
        if not finding.ok:
            return
    listed, names = _models(setup, base)
    yield listed
    if listed.ok and not (models or names):
        yield Finding(ok=False, what="no model is listed that answers a chat", remedy="name one: --model MODEL")
    for model in models or names:
        status, finding = _completes(setup, base, model)
        yield finding
        if status == HTTPStatus.UNAUTHORIZED:
            return  # every other model would fail too


def _reaches(setup: Setup, base: SplitResult) -> Finding:
    """Resolve the host and connect to it."""
    at = urlsplit(setup.proxy) if setup.proxy else base
    host, port = at.hostname or "", at.port or PORTS.get(at.scheme, 80)
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        return Finding(ok=False, what=f"{host} cannot be resolved: {error}", remedy="check the name in OPENAI_BASE_URL or HTTPS_PROXY")
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        what = f"{host} ({', '.join(sorted(addresses))}) accepts no connection on port {port}: {error}"
        return Finding(
            ok=False,
            what=what,
            remedy=f"start the proxy there, or correct the port; its log has the address that it listens on; the client uses port {port}",
        )
    return Finding(ok=True, what=f"{host} is {', '.join(sorted(addresses))}, and port {port} is open")


def _trusts(setup: Setup, base: SplitResult) -> Finding:
    """Check that the client trusts the server's certificate."""
    if base.scheme == "http":
        return Finding(ok=True, what="no TLS: no certificate to check")
    try:
        connection = _connection(setup, base)
        try:
            connection.connect()
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        trusted = f"by {setup.ca}" if setup.ca else "by the system's certificates"
        remedy = f"let the client trust the proxy's CA: {ENV}"
        return Finding(
            ok=False, what=f"the certificate for {base.hostname} is not trusted {trusted}: {error.verify_message}", remedy=remedy
        )
    except (OSError, http.client.HTTPException) as error:
        return Finding(
            ok=False, what=f"no TLS with {base.hostname}: {error}", remedy="check that the server at this address is the proxy; see its log"
        )
    return Finding(ok=True, what=f"the certificate for {base.hostname} is trusted")


def _is_the_api(setup: Setup, base: SplitResult) -> Finding:
    status, response, recognised = _get(setup, base, "/healthz")
    if (status, response, recognised) != (200, "ok\n", True):
        remedy = "the base URL or HTTPS_PROXY names another service: see where the proxy listens"
        return Finding(ok=False, what=f"this is not the proxy, so no key is sent: GET /healthz returns {status}", remedy=remedy)
    status, response, _ = _get(setup, base, "/readyz")
    if status != 200:
        return Finding(ok=False, what=f"the proxy is not ready: {str(response).strip()}", remedy=_remedy(503, ""))
    return Finding(ok=True, what="this is the proxy, and it is ready")


def _models(setup: Setup, base: SplitResult) -> tuple[Finding, list[str]]:
    """List the models. Return the names of those that may answer a chat too."""
    status, response = _ask(setup, base, "GET", "/models")
    if status != 200 or not isinstance(response, dict):
        message, code = _error(response)
        remedy = _remedy(404 if status == 200 else status, code)
        return Finding(ok=False, what=f"GET {setup.base}/models returns {status} {message}".rstrip(), remedy=remedy), []
    data = response.get("data")
    names = [str(model["id"]) for model in data if isinstance(model, dict) and "id" in model] if isinstance(data, list) else []
    count = "1 model" if len(names) == 1 else f"{len(names)} models"
    what = f"{count}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else count
    return Finding(ok=True, what=what), [name for name in names if not WITHOUT_CHAT.search(name)]


def _completes(setup: Setup, base: SplitResult, model: str) -> tuple[int, Finding]:
    """Request a completion of one token. Return its status too."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    status, response = _ask(setup, base, "POST", "/chat/completions", body)
    if status != 200:
        message, code = _error(response)
        return status, Finding(ok=False, what=f"{model}: {status} {message}", remedy=_remedy(status, code, model))
    return status, Finding(ok=True, what=f"{model}: works")


def _error(response: object) -> tuple[str, str]:
    """Return the message and the code of an error response."""
    error = response.get("error") if isinstance(response, dict) else None
    error = error if isinstance(error, dict) else {}
    return str(error.get("message", response))[:200], str(error.get("code"))


def _remedy(status: int, code: str, model: str = "MODEL") -> str:
    for known, word, remedy in REMEDIES:
        if known == status and word in code:
            return remedy.format(model=model)
    return "see the message from Azure; the proxy's log has the request"


def _connection(setup: Setup, base: SplitResult) -> http.client.HTTPConnection:
    port = base.port or PORTS[base.scheme]
    trust = ssl.create_default_context(cafile=setup.ca) if base.scheme == "https" else None
    at, at_port = (base.hostname or "", port)
    if setup.proxy:
        proxy = urlsplit(setup.proxy)
        at, at_port = proxy.hostname or "", proxy.port or PORTS.get(proxy.scheme, 80)
    connection = (
        http.client.HTTPSConnection(at, at_port, timeout=PATIENCE, context=trust)
        if trust
        else http.client.HTTPConnection(at, at_port, timeout=PATIENCE)
    )
    if setup.proxy:
        connection.set_tunnel(base.hostname or "", port)
    return connection


def _ask(setup: Setup, base: SplitResult, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request with the key, so only to a server that was recognised as the proxy. Return status and body, parsed if it is JSON."""
    headers = {"Authorization": f"Bearer {setup.key}", "Content-Type": "application/json"}
    status, text, _ = _exchange(setup, base, method, base.path.rstrip("/") + path, headers, json.dumps(body) if body else None)
    try:
        return status, json.loads(text)
    except (ValueError, RecursionError):
        return status, text


def _get(setup: Setup, base: SplitResult, path: str) -> tuple[int, str, bool]:
    """Get a path outside the base URL, without the key. Return status, body and whether the response has the proxy's header."""
    status, text, headers = _exchange(setup, base, "GET", path, {})
    return status, text, MARK in headers


def _exchange(
    setup: Setup, base: SplitResult, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, str, set[str]]:
    """Send a request. Return status, body and the names of the headers; status 0 and the error if there is no response.

    Redirects are not followed.
    """
    try:
        connection = _connection(setup, base)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read(MOST).decode(errors="replace")
        finally:
            connection.close()
    except ValueError:  # its message contains the key
        return 0, "the key or the base URL has a character that is invalid in HTTP", set()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error), set()
    return response.status, text, {name.lower() for name in response.headers}
