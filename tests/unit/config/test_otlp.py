"""The options for OpenTelemetry."""

from __future__ import annotations

import pytest

from azure_openai_proxy.config.otlp import semconv, url
from azure_openai_proxy.errors import SettingsError


@pytest.mark.parametrize(
    "text, base",
    [
        ("", ""),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        ("https://otel.example/", "https://otel.example"),
        ("http://[::1]:4318/prefix//", "http://[::1]:4318/prefix"),
    ],
)
def test_the_url_of_a_collector(text: str, base: str) -> None:
    """The base URL, to which the paths are appended."""
    assert base == url(text)


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1:4318", "grpc://a:4317", "http://", "http://a:99999", "http://a:0", "http://a:b", "http://[::1"),
        *(
            "http://user:pass@a",
            "http://a?key=1",
            "http://a#b",
            "http://a b",
            "http://a\u00e9",
            "http://a/v1/traces",
            "http://a/v1/metrics/",
        ),
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    """A URL that is incomplete, or that contains a query, a password or the path of a signal, is refused."""
    with pytest.raises(SettingsError, match=r"write the URL"):
        url(text)


def test_generations() -> None:
    """There are two generations of the conventions."""
    assert ("1.41", "genai-0.1") == (semconv("1.41"), semconv("GenAI-0.1"))
    with pytest.raises(SettingsError, match=r"write 1.41 or genai-0.1"):
        semconv("1.42")
