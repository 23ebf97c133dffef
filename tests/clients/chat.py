"""Clients with OpenAI's address built in: `python chat.py urllib`, `requests`, `httpx` or `openai`."""

from __future__ import annotations

import json
import os
import sys
import urllib.request

URL = "https://api.openai.com/v1/chat/completions"
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
HEADERS = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}


def with_urllib() -> str:
    with urllib.request.urlopen(urllib.request.Request(URL, json.dumps(BODY).encode(), HEADERS)) as answer:
        return answer.read().decode()


def with_requests() -> str:
    import requests

    return requests.post(URL, json=BODY, headers=HEADERS, timeout=30).text


def with_httpx() -> str:
    import httpx

    return httpx.post(URL, json=BODY, headers=HEADERS).text


def with_openai() -> str:
    import openai

    return openai.OpenAI().chat.completions.create(**BODY).model_dump_json()


if __name__ == "__main__":
    print({"urllib": with_urllib, "requests": with_requests, "httpx": with_httpx, "openai": with_openai}[sys.argv[1]]())
