"""Text for `azure.explain` and `azure.resend`: the proxy's decisions for a flow and the difference of two responses."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from azure_openai_proxy.formats import compression, quoting

from . import flow_metadata, response_text, usage_text
from . import text as readable_text
from .flow_metadata import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mitmproxy import http

    from .flow_metadata import SavedExchange

__all__ = ["compare", "explain"]

_WIDTH = 9
_COMPARED_WORDS = 1000
_COMPARED_LINES = 500
_SEVERAL_LINES = frozenset({"changed", "compared"})
_NOT_SHOWN = frozenset({"host", "content-length", "connection", "accept-encoding", "transfer-encoding"})


def explain(flow: http.HTTPFlow) -> str:
    """The proxy's decisions, one a line: operation, mapping, backend, version, and the changes to request and response."""
    if not flow_metadata.is_ours(flow):
        return quoting.line(f"{flow.request.method} {flow.request.pretty_url}: not an OpenAI request, passed unchanged")
    lines = [quoting.line(f"{flow.metadata[PREFIX + 'operation']}")]
    lines += (
        f"  {name:<{_WIDTH}}{quoting.terminal(text) if name in _SEVERAL_LINES else quoting.line(text)}"
        for name, text in _decisions(flow, flow_metadata.parse(flow))
        if text
    )
    return "\n".join(lines)


def _decisions(flow: http.HTTPFlow, saved: SavedExchange) -> Iterator[tuple[str, str]]:
    known = flow_metadata.known(flow)
    if saved.client_request:
        yield "client", f"{saved.client_request.method} {saved.client_request.path}"
    if "model" in known:
        deployment = known.get("deployment")
        yield (
            "mapping",
            f"{known['model']} → {deployment}" if deployment not in (None, known["model"]) else f"{known['model']}, not mapped",
        )
    if "deployment" not in known and flow.response and not known.get("backend"):
        yield "azure", "no upstream request: the proxy responded itself"
    else:
        yield "backend", f"{known.get('backend', '')} {flow.request.scheme}://{flow.request.host}:{flow.request.port}".strip()
        yield "version", _version(flow.request.path)
        yield "azure", f"{flow.request.method} {flow.request.path}"
        if saved.client_request:
            yield "body", _body(flow.request, saved.client_request)
            yield from _headers(flow.request, saved.client_request)
    if flow.response:
        yield "answer", " · ".join([f"{flow.response.status_code}", *([flow.comment] if flow.comment else [])])
        yield "changed", _dropped(flow.response, saved)
    if flow.error:
        yield "error", flow.error.msg
    yield "usage", usage_text.describe(known)
    yield "repairs", ", ".join(map(str, known.get("changed", [])))
    yield "compared", "\n".join(f"\n  {line}" for line in str(known.get("compared", "")).splitlines())


def _version(path: str) -> str:
    bare, _, query = path.partition("?")
    version = parse_qs(query).get("api-version", [""])[-1]
    if "/openai/v1/" in bare:
        return f"v1{f' ({version})' if version else ''}"
    return f"{version}, dated" if version else ""


def _body(request: http.Request, client_request: flow_metadata.ClientRequestHead) -> str:
    content = request.raw_content or b""
    if not client_request.splice:
        return f"unchanged, {readable_text.size(len(content))}" if content else ""
    now = content[client_request.splice.start : len(content) - client_request.splice.tail]
    rest = f"the rest of {readable_text.size(len(content))} unchanged"
    return f"{_text(client_request.splice.old)} → {_text(now)} at byte {client_request.splice.start}, {rest}"


def _text(piece: bytes) -> str:
    return readable_text.clean(piece[:200].decode("utf-8", "replace")) or "nothing"


def _headers(request: http.Request, client_request: flow_metadata.ClientRequestHead) -> Iterator[tuple[str, str]]:
    before = {name.lower(): value for name, value in client_request.headers}
    after = {name.lower(): value for name, value in request.headers.items()}
    gone = [name for name in before if name not in after and name not in _NOT_SHOWN]
    new = [name for name in after if name not in before and name not in _NOT_SHOWN]
    yield "headers", "; ".join(filter(None, [f"removed {', '.join(gone)}" if gone else "", f"added {', '.join(new)}" if new else ""]))


def _dropped(response: http.Response, saved: SavedExchange) -> str:
    if saved.azure_body is None:
        return ""
    hidden = response_text.hides_usage(response.raw_content or b"", saved.azure_body)
    removed = response_text.dropped(saved.azure_body, response.headers.get("content-type", ""), hides_usage=hidden)
    dropped = [body for _, body in removed]
    return "\n".join(dropped).replace("\n", "\n" + " " * (_WIDTH + 2)) or "rewritten"


def compare(one: http.HTTPFlow, other: http.HTTPFlow) -> str:
    """Compare two responses to the same request: the share of equal words, and a diff of the lines."""
    said = [_response_text(flow).splitlines() for flow in (one, other)]
    words = [" ".join(lines).partition("── end")[0].split() for lines in said]
    # SequenceMatcher takes quadratic time.
    short = max(map(len, words)) <= _COMPARED_WORDS
    same = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).ratio() if short else _quick_ratio(words[0], words[1])
    lines = [quoting.line(one.comment), quoting.line(other.comment), f"the words are {same:.0%} the same"]
    compared = [lines[:_COMPARED_LINES] for lines in said]
    return "\n".join([*lines, *list(difflib.unified_diff(compared[0], compared[1], lineterm="", n=1))[2:]])


def _quick_ratio(one: list[str], other: list[str]) -> float:
    """The share of words in both, regardless of order."""
    both = (Counter(one) & Counter(other)).total()
    return 2 * both / (len(one) + len(other))


def _response_text(flow: http.HTTPFlow) -> str:
    if not flow.response:
        return flow.error.msg if flow.error else ""
    return response_text.render(compression.content_or_nothing(flow.response)[:100_000], flow.response.headers.get("content-type", ""))
