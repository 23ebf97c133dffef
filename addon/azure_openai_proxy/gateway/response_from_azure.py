"""Azure's response to one attempt: how much of it is held back for a retry, and its translation for the client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from azure_openai_proxy import errors
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.api import url_rewriting
from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.formats import compression
from azure_openai_proxy.formats.json_scan import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mitmproxy import http

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import AzureRequest
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.routing.attempts import Attempts

    from .request_keys import RequestKeys

__all__ = ["ResponseFromAzure", "decompressed"]

_LAST_HOLD = 1.0
"""Seconds for which the beginning of a stream is held after an earlier attempt failed in its stream and no backend is left."""


@dataclass(slots=True)
class ResponseFromAzure:
    """Azure's response to `request`, the request of one attempt."""

    request: AzureRequest = field(repr=False)
    settings: Settings
    call: Call
    attempts: Attempts = field(repr=False)
    keys: RequestKeys
    here: str  # the proxy's base URL as the client uses it
    meter: Meter | None = field(default=None, repr=False)  # None: nothing receives usage records
    after_failed_stream: bool = False  # an earlier attempt failed with an error at the beginning of its stream
    stream: openai_response.ResponseStream | None = field(default=None, repr=False)  # translation of an event stream
    parsed: Mapping[str, Any] | None = field(default=None, repr=False)  # Azure's body, if its translation had to parse it
    _peek: Peek | None = field(default=None, repr=False)
    _passed: bytes = field(default=b"", repr=False)  # body forwarded so far of a response that contains a secret

    # Called by the upstream leg before the client has received any part of the response

    def hold_mode(self, response: http.Response) -> Hold | Peek:
        """How much of the response to buffer: failures until a retry is decided, streams until the first event with content."""
        if response.status_code >= 400:
            return Hold.FAILURE
        kind = self._kind(response)
        if response.status_code == 200 and kind == "events":
            self._peek = self._new_peek(response.headers.get("content-encoding"))
            return self._peek
        return Hold.WHOLE if kind == "json" else Hold.NOTHING

    def _new_peek(self, encoding: str | None) -> Peek:
        """Hold the beginning of a stream until its first output while another backend could take the request.

        If an earlier attempt has failed so, the last one is held for a moment too: a failure that follows at once becomes a status, which
        clients retry.
        """
        seconds = self.settings.hold_stream
        if self.attempts.could_move():
            return Peek(encoding, late=True, seconds=seconds)
        late = self.after_failed_stream
        return Peek(encoding, late=late, seconds=min(seconds, _LAST_HOLD) if late else seconds)

    @property
    def failed_in_stream(self) -> bool:
        """Whether the stream has begun with an error."""
        return self._peek is not None and self._peek.verdict is not None and self._peek.verdict.error is not None

    def discard(self) -> None:
        """Forget the beginning of the stream: another attempt follows, or the client gets the failure as a response."""
        self._peek = None

    # Called by the hooks

    def translate_head(self, response: http.Response) -> None:
        """Translate the headers, except those of a WebSocket, and choose between streaming and buffering the body."""
        kind = self._kind(response)
        encoding = response.headers.get("content-encoding")
        if response.status_code < 400:
            self.attempts.succeeded(response.headers)
            if self._peek and self._peek.first:
                self.attempts.created(self._peek.first)
            self._peek = None  # no other attempt follows
        openai_response.headers(response.headers, stream=kind == "events", http1=response.is_http11)
        url_rewriting.in_headers(response.headers, self.request.base, native=bool(self.call.native))
        if kind == "events":
            response.stream = self.stream = openai_response.ResponseStream(
                normalize=self.settings.normalize,
                encoding=encoding,
                done=self.call.endpoint.response_kind == "chat",
                secrets=self.keys.secrets,
                items=self._watch_events(),
                every=self.meter is not None and self.meter.exports_messages,
                hide_usage=self.request.adds_usage,
            )
        elif kind == "opaque":
            response.stream = self._pass_on if self.call.endpoint.response_kind == "secret" else True

    def _watch_events(self) -> Callable[[bytes], None] | None:
        """What gets the data of each event: the owners of items, and the usage."""
        item = self.attempts.item if self.attempts.makes_items else None
        if self.meter is None:
            return item
        event = self.meter.event
        if item is None:
            return event

        def both(data: bytes) -> None:
            event(data)
            item(data)

        return both

    def _kind(self, response: http.Response) -> Literal["events", "json", "opaque"]:
        """Classify the body. Some Azure gateways omit the content type of a stream, so the request decides in that case."""
        if response.status_code >= 400:
            return "json"
        # Without `headers.get`, because the first call comes before the fast path has made an index of these headers.
        values = [value for name, value in response.headers.fields if len(name) == len("content-type") and name.lower() == b"content-type"]
        content_type = b", ".join(values).lower()
        if content_type.startswith(b"text/event-stream") or (self.call.stream and not content_type.startswith(b"application/json")):
            return "events"
        is_json = content_type.startswith(b"application/json") or not content_type
        return "json" if is_json and self.call.endpoint.response_kind not in ("binary", "secret") else "opaque"

    def _pass_on(self, data: bytes) -> list[bytes]:
        """Stream a response that contains a secret for the client, since a buffered body would be kept on the flow."""
        self._passed += data
        if not data:
            self.attempts.created(self._passed)
        return [data] if data else []

    def to_scan(self, response: http.Response, content: bytes | None) -> tuple[bytes, tuple[str, ...]] | None:
        """The body and the members to find in it, if it is large and must be scanned in slices before `translate_body` is called."""
        if content is None or len(content) <= LARGE or response.status_code >= 400:
            return None
        shaped = self.settings.normalize and openai_response.suspect(content)
        return (content, url_rewriting.MEMBERS) if shaped or url_rewriting.suspect(content) else None

    def translate_body(self, response: http.Response, content: bytes, large: LargeBody | None = None) -> None:
        """Translate a buffered body. `content`: the decompressed body; `large`: the result of scanning a large one."""
        if response.status_code >= 400:
            shaped = openai_response.error_body(
                response.status_code,
                content,
                requested=self.call.model,
                deployment=self.request.deployment,
                models=self.settings.listed.names(),
                secrets=self.keys.secrets,
            )
            response.headers["content-type"] = "application/json"
            if b'"code": "content_filter"' in shaped:
                response.headers["x-should-retry"] = "false"  # the SDKs obey: the same prompt is filtered again
        else:
            self.attempts.created(content)
            if large:
                large = openai_response.large_json_body(large) if self.settings.normalize else large
                shaped = large.content
            else:
                shaped, self.parsed = openai_response.read_json_body(content) if self.settings.normalize else (content, None)
            shaped = url_rewriting.in_body(shaped, self.request.base, self.here, native=bool(self.call.native), large=large)
        if shaped is not content:
            _replace_content(response, shaped)


def decompressed(response: http.Response) -> bytes:
    """Decompress a buffered body. A successful response that exceeds the size limit is replaced by a 502."""
    try:
        return compression.content(response)
    except compression.TooLargeError as error:
        if response.status_code < 400:
            response.status_code, response.reason = 502, "Bad Gateway"
            response.headers.pop("content-encoding", None)
            shaped = errors.body(f"Azure's compressed response cannot be read: {error}.", "server_error", code="upstream_error")
            response.raw_content = shaped
            response.headers["content-length"] = str(len(shaped))
            return shaped
        return b""


def _replace_content(response: http.Response, content: bytes) -> None:
    """As `response.content = content`, which takes 5 µs more for a body without a content coding."""
    if "content-encoding" in response.headers:
        response.content = content
        return
    response.raw_content = content
    if "transfer-encoding" not in response.headers:
        response.headers["content-length"] = str(len(content))
