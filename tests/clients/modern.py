"""What a program on openai 1.0 or later sees: one JSON object. BASE_URL unset: the SDK's own address. HTTP2 set: nothing but HTTP/2."""

from __future__ import annotations

import json
import os
import ssl
from typing import Any

import openai

try:
    import httpx2 as httpx  # what newer SDKs stand on
except ImportError:
    import httpx

MESSAGES: list[Any] = [{"role": "user", "content": "Grüße, Azure"}]
versions: set[str] = set()


class OnlyHTTP2(ssl.SSLContext):
    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """httpx always offers HTTP/1.1 first."""
        super().set_alpn_protocols(["h2"])


def client() -> openai.OpenAI:
    options: dict[str, Any] = {"api_key": os.environ["KEY"], "max_retries": 0, "timeout": 30}
    if os.environ.get("BASE_URL"):
        options["base_url"] = os.environ["BASE_URL"]
    if os.environ.get("HTTP2"):
        context = OnlyHTTP2(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(os.environ["SSL_CERT_FILE"])
        hooks: Any = {"response": [lambda response: versions.add(response.http_version)]}
        options["http_client"] = httpx.Client(http1=False, http2=True, verify=context, event_hooks=hooks)
    return openai.OpenAI(**options)


with client() as ai:
    chat = ai.chat.completions.create(model="gpt-3.5-turbo", messages=MESSAGES)
    chunks = list(ai.chat.completions.create(model="gpt-3.5-turbo", messages=MESSAGES, stream=True))
    completion = ai.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once upon")
    one = ai.embeddings.create(model="text-embedding-3-small", input="one")
    two = ai.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    packed = ai.embeddings.create(model="text-embedding-3-small", input="one", encoding_format="base64")
    models = ai.models.list()

print(
    json.dumps(
        {
            "chat": [chat.model, chat.choices[0].message.role, chat.choices[0].message.content, chat.choices[0].finish_reason],
            "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            "stream roles": [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.role],
            "stream ends": [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason],
            "stream model": sorted({chunk.model for chunk in chunks}),
            "completion": completion.choices[0].text,
            "embedding of a string": [item.embedding for item in one.data],
            "embeddings of a list": [item.embedding for item in two.data],
            "embedding in base64": [item.embedding for item in packed.data],
            "models": sorted(model.id for model in models.data),
            "http": sorted(versions),
        }
    )
)
