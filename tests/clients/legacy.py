"""What a program on openai 0.28 sees: one JSON object. BASE_URL unset: the SDK's own address."""

from __future__ import annotations

import json
import os
from typing import Any

import openai

MESSAGES: list[Any] = [{"role": "user", "content": "Grüße, Azure"}]

openai.api_key = os.environ["KEY"]
if os.environ.get("BASE_URL"):
    openai.api_base = os.environ["BASE_URL"]

chat = openai.ChatCompletion.create(model="gpt-3.5-turbo", messages=MESSAGES)
chunks = list(openai.ChatCompletion.create(model="gpt-3.5-turbo", messages=MESSAGES, stream=True))
completion = openai.Completion.create(model="gpt-3.5-turbo-instruct", prompt="Once upon")
one = openai.Embedding.create(model="text-embedding-3-small", input="one")
two = openai.Embedding.create(model="text-embedding-3-small", input=["one", "two"])
packed = openai.Embedding.create(model="text-embedding-3-small", input="one", encoding_format="base64")
models = openai.Model.list()

print(
    json.dumps(
        {
            "chat": [chat.model, chat.choices[0].message.role, chat.choices[0].message.content, chat.choices[0].finish_reason],
            "stream": "".join(chunk.choices[0].delta.get("content") or "" for chunk in chunks),
            "stream roles": [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.get("role")],
            "stream ends": [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason],
            "stream model": sorted({chunk.model for chunk in chunks}),
            "completion": completion.choices[0].text,
            "embedding of a string": [item.embedding for item in one.data],
            "embeddings of a list": [item.embedding for item in two.data],
            "embedding in base64": [item.embedding for item in packed.data],
            "models": sorted(model.id for model in models.data),
            "http": [],
        }
    )
)
