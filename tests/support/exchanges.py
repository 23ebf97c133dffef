"""Exchanges, requests and responses for the tests of the gateway's stages."""

from __future__ import annotations

import json
from dataclasses import replace

from mitmproxy import http

from azure_openai_proxy.api.backend import Backend, parse_base, parse_endpoint
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.gateway.exchange import Exchange

__all__ = ["FILTERED", "JSON", "KEY", "answering", "asking", "chat", "exchange", "sent", "talking", "two_backends"]


KEY = {"authorization": "Bearer client"}
JSON = {"content-type": "application/json"}
FILTERED = b'{"choices":[{"content_filter_results":{},"index":0}],"model":"gpt-4o"}'


def exchange(*, normalize: bool = True, token: str = "", mode: str = "azure", mapping: str = "", origin: str | None = None) -> Exchange:
    backend = Backend(name="default", base=parse_endpoint("https://r.openai.azure.com")[0], token=token, apiversion="2024-10-21")
    openai = parse_base("https://openai.example/prefix")[0]
    return Exchange(
        Settings(
            backends=(backend,),
            mapper=Mapper.parse(mapping),
            normalize=normalize,
            mode="openai" if mode == "openai" else "azure",
            passthrough_endpoint=openai,
        ),
        origin,
    )


def asking(method: str, path: str, body: bytes | None = None, **headers: str) -> http.Request:
    request = http.Request.make(method, f"http://localhost:8080{path}", body or b"")
    request.headers.update({"host": "localhost:8080", **KEY, **JSON, **headers})
    if body is None:
        request.headers.pop("content-length", None)
    return request


def answering(status: int, body: bytes, content_type: str | None = "application/json", **headers: str) -> http.Response:
    return http.Response.make(status, body, ({"content-type": content_type} if content_type else {}) | headers)


def chat(*, stream: bool = False, **more: object) -> bytes:
    return json.dumps({"model": "gpt-4o", "stream": stream} | more).encode()


def sent(body: bytes | None = None, path: str = "/v1/chat/completions", method: str = "POST", *, normalize: bool = True) -> Exchange:
    asked = exchange(normalize=normalize, origin="https://page.example")
    asked.request(asking(method, path, chat() if body is None else body))
    return asked


def two_backends(*, keyless: bool = False) -> Exchange:
    asked = exchange(token="first-key")
    (first,) = asked.settings.backends
    second = replace(first, name="second", base=parse_base("https://second.example")[0], token="" if keyless else "second-key", priority=1)
    asked.settings = replace(asked.settings, backends=(first, second), debug_headers=True)
    return asked


def talking() -> Exchange:
    asked = exchange(mapping="m=d")
    request = asking("GET", "/v1/realtime?model=m", upgrade="websocket")
    request.headers["sec-websocket-protocol"] = "realtime, openai-insecure-api-key.k"
    asked.request(request)
    return asked
