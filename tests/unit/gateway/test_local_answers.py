"""The requests that the proxy answers itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mitmproxy import http

from azure_openai_proxy.errors import Failed, NotFound
from support.exchanges import asking, exchange


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("OPTIONS", "/v1/chat/completions", 204),
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/favicon.ico", 404),
        ("GET", "/v1/models", 200),
    ],
)
def test_what_the_proxy_answers_itself(method: str, path: str, status: int) -> None:
    """Nothing of it goes to Azure."""
    asked = exchange()
    answer = asked.request(asking(method, path))
    assert answer is not None
    assert (status, None) == (answer.status_code, asked.from_azure)


@pytest.mark.parametrize("method", ["TRACE", "trace", "TRACK", "CONNECT", "WS"])
def test_a_method_that_no_operation_has_is_refused(method: str) -> None:
    """TRACE would repeat the key, and WS is no method."""
    with pytest.raises(Failed, match="not a method") as refused:
        exchange().request(asking(method, "/v1/files"))
    assert 405 == refused.value.status


@pytest.mark.parametrize("mode", ["azure", "openai"])
@pytest.mark.parametrize(
    ("path", "not_ready", "status"), [("/healthz", "stopping", 200), ("/readyz", None, 200), ("/readyz", "stopping", 503)]
)
def test_probes(path: str, not_ready: str | None, status: int, mode: str) -> None:
    """Those who run the proxy need no key; a process that stops is alive and of no more use."""
    asked, request = exchange(mode=mode), http.Request.make("GET", f"http://localhost{path}")
    asked.not_ready = lambda: not_ready
    answer = asked.request(request) if mode == "azure" else asked.forward_unchanged(request)
    assert answer
    assert status == answer.status_code


def test_moderations_are_unflagged_by_the_option_alone() -> None:
    """Without it there are none."""
    asked = exchange()
    with pytest.raises(NotFound, match="Azure AI Content Safety"):
        asked.request(asking("POST", "/v1/moderations", b'{"input":"x"}'))
    asked.settings = replace(asked.settings, moderations_unflagged=True)
    response = asked.request(asking("POST", "/v1/moderations", b'{"input":"x"}'))
    assert response
    assert [False] == [result["flagged"] for result in response.json()["results"]]


def test_what_was_discovered_is_listed() -> None:
    """In addition to the configured ones; the default mapping is a guess that discovery replaces."""
    for mapping, names in (("m=d", ["m", "found"]), ("", ["found"])):
        asked = exchange(mapping=mapping)
        asked.discovered = ("found",)
        response = asked.request(asking("GET", "/v1/models"))
        assert response
        assert names == [model["id"] for model in response.json()["data"]]
