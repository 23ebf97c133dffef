"""One request of ours and its answer: what every stage needs to know, and the stages in their order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mitmproxy import http

from . import calls, credentials, synthesized, to_azure, to_openai
from .backends import Base

if TYPE_CHECKING:
    from .calls import Call
    from .options import Settings

__all__ = ["Exchange"]


@dataclass(slots=True)
class Exchange:
    """Lives as long as its flow. The settings are those in force when the request came."""

    settings: Settings
    origin: str | None  # of a browser's page
    call: Call | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    sent: bool = False  # the request is Azure's now, and so is the answer to come

    @property
    def unchanged(self) -> bool:
        """Everything goes to OpenAI as it came."""
        return self.settings.mode == "openai"

    def request(self, request: http.Request) -> http.Response | None:
        """Turn `request` into Azure's, in place, or answer it.

        Raises:
            ProxyError: the request cannot be served; the error is the answer.
        """
        path, _, query_text = request.path.partition("?")
        query = to_azure.Query.read(query_text)
        self.secrets = tuple(filter(None, {self.settings.token, *credentials.seen(request.headers, query.api_key)}))
        if request.method == "OPTIONS":
            return synthesized.preflight(request)
        if path == "/" and request.method in ("GET", "HEAD"):
            return synthesized.welcome()
        self.call = call = calls.recognise(request.method, path, request.headers, request.raw_content or b"")
        if call is None:
            return synthesized.not_found()
        if call.endpoint.by == "proxy":
            return synthesized.answer(call, self.settings.mapper)
        self._send(request, call, query)
        return None

    def _send(self, request: http.Request, call: Call, query: to_azure.Query) -> None:
        backend = self.settings.backend
        assert backend is not None, "azure mode has a backend: the settings see to it"
        assert call.model is not None, "every row that goes to Azure has its model in the body so far"
        deployment = self.settings.mapper.deployment(call.model)
        credential = credentials.choose(backend.token, request.headers, query.api_key)
        path = to_azure.path(call, deployment, backend, query.rest)
        headers = to_azure.headers(request.headers, credential, backend.base.netloc)
        content = to_azure.body(call, deployment, backend, request.raw_content or b"")
        aim(request, backend.base)
        request.path, request.headers, request.raw_content = path, headers, content
        request.headers["content-length"] = str(len(content))
        self.sent = True

    def response_head(self, response: http.Response) -> None:
        """Shape the head of the answer, and decide whether its body streams through or is read whole."""
        if self.unchanged:
            response.stream = True
            return
        if self.sent:
            streams = response.status_code < 300 and self._streams(response)
            encoding = response.headers.get("content-encoding")
            to_openai.headers(response.headers, stream=streams, http1=response.is_http11)
            if streams:
                response.stream = to_openai.Stream(normalize=self.settings.normalize, encoding=encoding, secrets=self.secrets)
        synthesized.add_cors(response, self.origin)

    def _streams(self, response: http.Response) -> bool:
        """Some fronts of Azure send a stream with no content type: what was asked for decides then."""
        assert self.call
        kind = response.headers.get("content-type", "")
        return kind.startswith("text/event-stream") or (self.call.stream and not kind.startswith("application/json"))

    def response_body(self, response: http.Response) -> None:
        """Shape a body that was read whole."""
        if not self.sent or response.stream:
            return
        assert self.call
        content = response.get_content(strict=False) or b""
        if response.status_code >= 400:
            shaped = to_openai.error_body(
                response.status_code, content, asked=self.call.model, models=self.settings.mapper.names(), secrets=self.secrets
            )
            response.headers["content-type"] = "application/json"
        else:
            shaped = to_openai.json_body(content) if self.settings.normalize else content
        if shaped is not content:
            response.content = shaped


def aim(request: http.Request, base: Base) -> None:
    """Send `request` to `base` instead of where the client sent it."""
    request.scheme = base.scheme
    request.port = base.port
    request.host = base.host
