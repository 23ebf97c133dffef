"""Parsers of the options for OpenTelemetry."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from azure_openai_proxy.errors import SettingsError

from . import extras

__all__ = ["Semconv", "semconv", "url"]

type Semconv = Literal["1.41", "genai-0.1"]
"""A generation of the GenAI conventions."""


def url(text: str) -> str:
    """The base URL of a collector, without a slash at its end; "" for none."""
    if not text:
        return ""
    try:
        found = urlsplit(text)
        valid = bool(found.hostname) and found.port != 0
    except ValueError:
        valid = False
    if not valid or found.scheme not in ("http", "https") or re.search(r"[^\x21-\x7e]|[?#@]", text):
        raise SettingsError("write the URL of a collector without query and password, as in http://127.0.0.1:4318")
    if re.search(r"/v1/(traces|metrics|logs)/*$", found.path):
        raise SettingsError("write the URL without /v1/traces: the proxy appends it")
    extras.require("otel")
    return text.rstrip("/")


def semconv(text: str) -> Semconv:
    match text.lower():
        case "1.41":
            return "1.41"
        case "genai-0.1":
            return "genai-0.1"
    raise SettingsError("write 1.41 or genai-0.1")
