"""Index of recorded responses for `--server-replay`. A request matches a recording by operation, model, query and normalized body.

Two bodies match if they differ only in white space, in the order of members, in ignored members, or in dates and UUIDs inside
strings, which change from run to run. In a body of more than 1 MB they count in strings of more than `LONG` characters, which are images or
files; a body that would take long to parse is compared byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from azure_openai_proxy.config.parsers import REPLAY_IGNORED
from azure_openai_proxy.errors import NotFound
from azure_openai_proxy.formats import multipart

from . import flow_metadata, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mitmproxy import flow, http

__all__ = ["Key", "Recordings", "key", "meaning"]

_DATES = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?")
_UUIDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
LONG = 64 << 10
"""Characters of a string that is compared as a whole, in a large body."""
_NOT_COMPARED = frozenset({"api-version", "api-key"})


class Key(NamedTuple):
    operation: str  # POST /v1/chat/completions
    model: str | None
    query: tuple[tuple[str, str], ...]
    meaning: bytes


def key(operation: str, model: str | None, path: str, content_type: str, body: bytes, ignored: Sequence[str] = REPLAY_IGNORED) -> Key:
    """The index key of a request."""
    pairs = parse_qsl(path.partition("?")[2], keep_blank_values=True)
    query = tuple(sorted(pair for pair in pairs if pair[0].lower() not in _NOT_COMPARED))
    return Key(operation, model, query, meaning(body, content_type, ignored))


def meaning(body: bytes, content_type: str = "", ignored: Sequence[str] = REPLAY_IGNORED) -> bytes:
    """The normalized body: equal for bodies that match."""
    if boundary := multipart.boundary(content_type):
        return body.replace(boundary, b"")
    if text.is_heavy(body):
        return body
    try:
        value = json.loads(body)
        if len(body) > text.LARGE:
            value = _digested(value)
        for place in ignored:
            _forget(value, place.split("."))
        written = json.dumps(value, sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body
    for word, pattern in (("dates", _DATES), ("uuids", _UUIDS)):
        if word in ignored:
            written = pattern.sub(f"<{word}>", written)
    return written.encode("utf-8", "surrogatepass")


def _digested(value: Any) -> Any:
    """The value with digests in place of its long strings, in which a search for dates takes long."""
    if isinstance(value, str):
        return value if len(value) <= LONG else hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(value, list):
        return [_digested(item) for item in value]
    return {name: _digested(item) for name, item in value.items()} if isinstance(value, dict) else value


def _forget(value: Any, place: list[str]) -> None:
    name, *below = place
    if isinstance(value, list) and name == "*":
        for item in value:
            _forget(item, below)
    elif isinstance(value, dict) and name in value:
        if below:
            _forget(value[name], below)
        else:
            del value[name]


class Recordings:
    """OpenAI flows by key. Requests with the same key get the recorded responses in order, then the last one again."""

    def __init__(self, flows: Iterable[flow.Flow], ignored: Sequence[str] = REPLAY_IGNORED) -> None:
        self.ignored = ignored
        self.others: list[flow.Flow] = []
        self._found: dict[Key, list[http.HTTPFlow]] = {}
        for one in flows:
            if flow_metadata.is_ours(one) and (recorded := _key(one, ignored)):  # type: ignore[arg-type]
                self._found.setdefault(recorded, []).append(one)  # type: ignore[arg-type]
            else:
                self.others.append(one)

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def next(self, wanted: Key) -> http.HTTPFlow:
        """The recording for a request.

        Raises:
            NotFound: there is no recording for it.
        """
        flows = self._found.get(wanted)
        if not flows:
            raise NotFound(
                f"No answer to this {wanted.operation}{f' for {wanted.model}' if wanted.model else ''} was recorded"
                f"{self._nearest(wanted)}. Nothing was sent to Azure.",
                code="not_recorded",
            )
        return flows.pop(0) if len(flows) > 1 else flows[0]

    def _nearest(self, wanted: Key) -> str:
        """How the request differs from the recordings that are similar."""
        same = [one for one in self._found if one.operation == wanted.operation]
        if not same:
            return ": the recording has no such operation"
        if not any(one.model == wanted.model for one in same):
            return f": the recording has this operation for {', '.join(sorted({str(one.model) for one in same}))}"
        return ": the recording has this operation and model, but with another body or query"


def _key(one: http.HTTPFlow, ignored: Sequence[str]) -> Key | None:
    """The key of a flow; None for a flow without a complete response."""
    known, saved = flow_metadata.known(one), flow_metadata.parse(one)
    whole = one.response and (one.response.raw_content is not None or one.websocket) and not one.error
    if not whole or not saved.client_request:
        return None
    body = saved.client_request.body(one.request.raw_content or b"")
    content_type = one.request.headers.get("content-type", "")
    return key(str(known["operation"]), known.get("model"), saved.client_request.path, content_type, body, ignored)
