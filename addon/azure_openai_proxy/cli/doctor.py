"""Tries a client's way step by step, from the client's side, and says what to do about what fails. Nothing here needs mitmproxy.

No key is sent until the other side has answered `/healthz` as this proxy does, so that a service that merely listens at that address
does not get one. A program that imitates the proxy does: only TLS, with a CA that the client knows, tells the two apart.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["OPENAI", "PATIENCE", "Finding", "Setup", "examine", "split"]

OPENAI = "https://api.openai.com/v1"
PATIENCE = 30.0
PORTS = {"http": 80, "https": 443}
ENV = 'eval "$(azure-openai-proxy env)"'
MARK = "x-azure-openai-proxy"
"""A header that only the proxy's `/healthz` has."""
HOST = re.compile(r"[\w.:%-]+")
MOST = 4 << 20
"""Bytes of an answer that are read."""


def split(url: str) -> SplitResult:
    """The parts of a base URL or of a proxy's.

    Raises:
        ValueError: it is not an http or https URL, or has a space or control characters in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname or not HOST.fullmatch(parts.hostname) or " " in url or not url.isprintable():
        raise ValueError("write it as http://localhost:8080")
    parts.port  # noqa: B018 - raises ValueError if it is no number
    return parts


class Setup(NamedTuple):
    """What the client has been told."""

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


# What the API answers to a completion, and what to do about it: status, a word in the error, the remedy.
REMEDIES = (
    (401, "", "the key is not Azure's: set OPENAI_API_KEY to it, or AZURE_OPENAI_TOKEN where the proxy runs"),
    (
        403,
        "",
        "this key may not: give it the role Cognitive Services OpenAI User, or let the resource's network rules admit the proxy",
    ),
    (404, "model_not_found", "no such deployment: name one of yours, or map the model: AZURE_OPENAI_MODEL_MAPPER={model}=DEPLOYMENT"),
    (404, "", "that is no path of the API: the base URL ends with /v1, as in http://localhost:8080/v1"),
    (429, "", "Azure has enough for now: try again later, or raise the deployment's quota"),
    (502, "", "the proxy does not reach Azure: check AZURE_OPENAI_ENDPOINT where it runs, its name and its network"),
    (503, "", "no backend is usable now: the proxy's log says why"),
)


def examine(setup: Setup, models: Sequence[str] | None = None) -> Iterator[Finding]:
    """Each step once the one before it went well."""
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
        yield Finding(False, "a way to the proxy", f"neither OPENAI_BASE_URL nor HTTPS_PROXY leads to it: {ENV}")  # noqa: FBT003
        return
    for step in (_reaches, _trusts, _is_the_api):
        finding = step(setup, base)
        yield finding
        if not finding.ok:
            return
    listed, names = _models(setup, base)
    yield listed
    for model in models or names:
        finding = _completes(setup, base, model)
        yield finding
        if "401" in finding.what:
            return  # the same for every other model


def _reaches(setup: Setup, base: SplitResult) -> Finding:
    """Resolves and connects."""
    at = urlsplit(setup.proxy) if setup.proxy else base
    host, port = at.hostname or "", at.port or PORTS.get(at.scheme, 80)
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        return Finding(ok=False, what=f"{host} has no address: {error}", remedy="check the name in OPENAI_BASE_URL or HTTPS_PROXY")
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        what = f"{host} ({', '.join(sorted(addresses))}) takes no connection on port {port}: {error}"
        return Finding(
            ok=False, what=what, remedy=f"start the proxy there, or correct the port; it listens where its log says, here {port}"
        )
    return Finding(ok=True, what=f"{host} is {', '.join(sorted(addresses))}, and port {port} is open")


def _trusts(setup: Setup, base: SplitResult) -> Finding:
    """The certificate that the client sees is one it trusts."""
    if base.scheme == "http":
        return Finding(ok=True, what="no TLS: nothing to trust")
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
        return Finding(ok=False, what=f"no TLS with {base.hostname}: {error}", remedy="is what listens there this proxy? See its log")
    return Finding(ok=True, what=f"the certificate for {base.hostname} is trusted")


def _is_the_api(setup: Setup, base: SplitResult) -> Finding:
    status, answer, recognised = _asked(setup, base, "/healthz")
    if (status, answer, recognised) != (200, "ok\n", True):
        remedy = "the base URL, or the proxy, is that of something else: see where the proxy listens"
        return Finding(ok=False, what=f"this is not the proxy, and gets no key: GET /healthz gives {status}", remedy=remedy)
    status, answer, _ = _asked(setup, base, "/readyz")
    if status != 200:
        return Finding(ok=False, what=f"the proxy is not ready: {str(answer).strip()}", remedy=_remedy(503, ""))
    return Finding(ok=True, what="this is the proxy, and it is ready")


def _models(setup: Setup, base: SplitResult) -> tuple[Finding, list[str]]:
    status, answer = _ask(setup, base, "GET", "/models")
    if status != 200 or not isinstance(answer, dict):
        return Finding(ok=False, what=f"GET {setup.base}/models gives {status}", remedy=_remedy(404, "")), []
    data = answer.get("data")
    names = [str(model["id"]) for model in data if isinstance(model, dict) and "id" in model] if isinstance(data, list) else []
    return Finding(ok=True, what=f"{len(names)} models: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"), names


def _completes(setup: Setup, base: SplitResult, model: str) -> Finding:
    """One token of a completion."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    status, answer = _ask(setup, base, "POST", "/chat/completions", body)
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    if status != 200:
        message = str(error.get("message", answer))[:200]
        return Finding(ok=False, what=f"{model}: {status} {message}", remedy=_remedy(status, str(error.get("code")), model))
    return Finding(ok=True, what=f"{model}: answers")


def _remedy(status: int, code: str, model: str = "MODEL") -> str:
    for known, word, remedy in REMEDIES:
        if known == status and word in code:
            return remedy.format(model=model)
    return "the message says what Azure has against it; the proxy's log shows what was sent"


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
    """Status and answer of the API, JSON where it is. The key is sent: only the proxy may be asked."""
    headers = {"Authorization": f"Bearer {setup.key}", "Content-Type": "application/json"}
    status, text, _ = _exchange(setup, base, method, base.path.rstrip("/") + path, headers, json.dumps(body) if body else None)
    try:
        return status, json.loads(text)
    except (ValueError, RecursionError):
        return status, text


def _asked(setup: Setup, base: SplitResult, path: str) -> tuple[int, str, bool]:
    """Status and answer for a path that is not below the base URL's, without a key; whether it is the proxy's."""
    status, text, headers = _exchange(setup, base, "GET", path, {})
    return status, text, MARK in headers


def _exchange(
    setup: Setup, base: SplitResult, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> tuple[int, str, set[str]]:
    """Status, answer, names of headers; status 0: there was no answer. No redirect is followed."""
    try:
        connection = _connection(setup, base)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read(MOST).decode(errors="replace")
        finally:
            connection.close()
    except ValueError:  # its message repeats the key
        return 0, "the key or the base URL holds a character that no request can carry", set()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error), set()
    return answer.status, text, {name.lower() for name in answer.headers}
