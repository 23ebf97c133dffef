"""The table of endpoints."""

import pytest

from azure_openai_proxy.api import endpoints
from azure_openai_proxy.api.endpoints import ENDPOINTS, RULE, Endpoint, Form, find, segments, values


@pytest.mark.parametrize("path", ["/v1/chat/completions", "//v1/chat/completions", "/v1//chat/completions/"])
def test_a_base_url_may_be_written_in_any_way(path: str) -> None:
    """Repeated and trailing slashes of a base URL are ignored."""
    assert ("v1", "chat", "completions") == segments(path)


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: f"{row.method} {row.path}")
def test_every_row_is_found(row: Endpoint) -> None:
    """Every row can be found: no other row hides it."""
    parts = tuple(part.strip("{}") for part in segments(row.path) if part != "**")
    assert row is find("PATCH" if row.method == "*" else row.method, parts)


@pytest.mark.parametrize(
    ("method", "path", "row"),
    [
        ("GET", "/files", "/files/**"),
        ("DELETE", "/files/a", "/files/**"),
        ("GET", "/files/a/content", "/files/{file_id}/content"),
        ("HEAD", "/files/a/content", "/files/{file_id}/content"),
        ("POST", "/files/a/content", "/files/**"),
        ("GET", "/chat/completions", "/chat/completions"),
        ("GET", "/chat/completions/a/messages", "/chat/completions/**"),
        ("POST", "/realtime/calls", "/realtime/calls"),
        ("POST", "/realtime/calls/a/hangup", "/realtime/**"),
        ("GET", "/models", "/models"),
        ("GET", "/engines/a/search", "/**"),
        ("POST", "/something/new", "/**"),
        ("POST", "/conversations", "/**"),
    ],
)
def test_the_row_that_says_most_is_taken(method: str, path: str, row: str) -> None:
    """Exact segments have precedence over placeholders, and both over `/**`; unknown operations get the default row."""
    assert row == find(method, segments(path)).path


def test_values_are_read_from_the_path() -> None:
    """The values of placeholders are returned as the client wrote them."""
    row = find("POST", segments("/evals/e%201/runs/r/cancel"))
    assert {"eval_id": "e%201", "run_id": "r"} == values(row, segments("/evals/e%201/runs/r/cancel"))
    assert {} == values(RULE, ("a", "b"))


@pytest.mark.parametrize(
    ("method", "path", "version", "form"),
    [
        ("POST", "/chat/completions", "2024-10-21", Form("/openai/deployments/{deployment}{path}", "2024-10-21")),
        ("POST", "/chat/completions", "2025-04-01-preview", Form("/openai/deployments/{deployment}{path}", "2025-04-01-preview")),
        ("POST", "/chat/completions", "v1", Form("/openai/v1{path}", "")),
        ("POST", "/chat/completions", "preview", Form("/openai/v1{path}", "preview")),
        # only in previews of the dated API
        ("POST", "/responses", "2024-10-21", Form("/openai/v1{path}", "")),
        ("POST", "/responses", "2025-03-01-preview", Form("/openai{path}", "2025-03-01-preview")),
        ("POST", "/responses", "2025-02-01-preview", Form("/openai/v1{path}", "")),
        # only in the dated API
        ("POST", "/uploads", "v1", Form("/openai{path}", "2024-10-21")),
        ("POST", "/uploads", "2024-06-01", Form("/openai{path}", "2024-10-21")),
        ("POST", "/assistants", "v1", Form("/openai{path}", "2025-04-01-preview")),
        ("POST", "/assistants", "2024-10-21", Form("/openai{path}", "2025-04-01-preview")),
        ("POST", "/assistants", "2024-05-01-preview", Form("/openai{path}", "2024-05-01-preview")),
        # another path at Azure
        ("POST", "/evals/e/runs/r/cancel", "v1", Form("/openai/v1/evals/{eval_id}/runs/{run_id}", "")),
        ("GET", "/webhook_endpoints", "v1", Form("/openai/v1/dashboard{path}", "")),
        ("POST", "/engines/e/embeddings", "v1", Form("/openai/v1/embeddings", "")),
        # without an api-version
        ("WS", "/realtime", "preview", Form("/openai/v1{path}", "")),
        ("POST", "/realtime/calls/c/hangup", "preview", Form("/openai/v1{path}", "")),
        # no row
        ("GET", "/something/new", "2024-10-21", Form("/openai/v1{path}", "")),
    ],
)
def test_form(method: str, path: str, version: str, form: Form) -> None:
    """The dated API is used if the configured version has the operation; otherwise v1 is used."""
    assert form == find(method, segments(path)).form(version)


def test_without_a_model_there_is_no_deployment_for_the_path() -> None:
    """A request without a model goes to v1 if the dated path needs a deployment: OpenAI has defaults for images."""
    row = find("POST", ("images", "generations"))
    assert Form("/openai/v1{path}", "") == row.form("2024-10-21", model=False)


def test_the_older_realtime_has_a_form_of_its_own() -> None:
    """A client of the preview protocol of realtime gets the preview path, with any configured version."""
    assert Form("/openai/realtime", "2025-04-01-preview") == find("WS", ("realtime",)).form("v1", beta=True)


def test_every_row_has_a_known_handler() -> None:
    """Every row is sent to Azure, answered by the proxy, or marked as not available."""
    assert {"azure", "models", "engines", "billing", "moderations", "nobody"} == {row.by for row in endpoints.ENDPOINTS}
