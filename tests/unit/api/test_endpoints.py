"""The table of endpoints."""

import re

import pytest

from azure_openai_proxy.api import endpoints
from azure_openai_proxy.api.endpoints import DEFAULT, ENDPOINTS, Endpoint, Form, find, segments, values


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
    assert {} == values(DEFAULT, ("a", "b"))


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
    assert {"azure", "models", "engines", "billing", "moderations", "unsupported"} == {row.handled_by for row in endpoints.ENDPOINTS}


@pytest.mark.parametrize(
    ("method", "path", "label", "gen_ai", "by_model"),
    [
        ("POST", "/chat/completions", "chat.completions", "chat", True),
        ("GET", "/chat/completions/c1", "chat.completions", "chat.completions", False),
        ("POST", "/completions", "completions", "text_completion", True),
        ("POST", "/engines/e/embeddings", "embeddings", "embeddings", True),
        ("GET", "/engines/e", "engines", "engines", False),
        ("POST", "/responses", "responses", "chat", True),
        ("GET", "/responses/r", "responses", "fetch_response", True),
        ("POST", "/responses/compact", "responses.compact", "chat", True),
        ("POST", "/responses/r/cancel", "responses", "responses", False),
        ("WS", "/realtime", "realtime", "chat", True),
        ("POST", "/images/generations", "images.generations", "images.generations", True),
        ("POST", "/audio/transcriptions", "audio.transcriptions", "audio.transcriptions", True),
        ("POST", "/fine_tuning/jobs/j/pause", "fine_tuning.jobs", "fine_tuning.jobs", False),
        ("POST", "/conversations/c/items", "conversations", "conversations", False),
        ("POST", "/whatever/a/client/sends", "other", "other", False),
        ("POST", "/", "other", "other", False),
    ],
)
def test_the_name_of_an_operation(method: str, path: str, label: str, gen_ai: str, by_model: bool) -> None:
    """It is OpenAI's family of paths, and in the GenAI conventions theirs."""
    row = find(method, segments(path))
    assert (label, gen_ai, by_model) == (endpoints.label(row, path), endpoints.gen_ai_operation(row, path), row.by_model)


def test_the_names_of_operations_are_bounded() -> None:
    """They are names of metrics' labels."""
    names = {endpoints.label(row, "/x") for row in ENDPOINTS}
    assert len(names) < 80
    assert all(re.fullmatch(r"[a-z_.-]+", name) for name in names)


def test_segments_with_escapes_that_are_not_needed() -> None:
    """Servers decode them, so the operation is the same; other escapes stay as the client wrote them."""
    assert ("v1", "chat", "completions") == segments("/v1/chat/c%6Fmpletion%73")
    assert ("v1", "files", "a%2Fb%20c%256F") == segments("/v1/%66iles/a%2Fb%20c%256F")


@pytest.mark.parametrize(
    "operation",
    [
        *(
            "POST /batches",
            "POST /Batches",
            "post /batches",
            "POST /videos/v/remix",
            "POST /threads/t/Runs",
            "POST /realtime/Client_secrets",
        ),
        *("POST /Chat/completions", "post /chat/completions", "POST /responses/Compact", "WS /Responses", "WS /realtime/Translations"),
        *("POST /rerank", "PUT /embeddings", "POST /deployments/d/extensions/chat/completions", "POST /chat/completions;x"),
    ],
)
def test_unmetered_operations(operation: str) -> None:
    """Work that the proxy does not see, does not know, or that a server which compares without case takes for another operation."""
    method, path = operation.split()
    assert endpoints.is_unmetered(method, segments(path))


@pytest.mark.parametrize(
    "operation",
    [
        *("POST /chat/completions", "POST /chat/completions/Id", "WS /responses", "POST /responses", "POST /responses/Id/cancel"),
        *("GET /unknown", "DELETE /responses/Id", "POST /files", "POST /containers", "POST /engines/E/embeddings", "GET /batches/Id"),
    ],
)
def test_metered_operations(operation: str) -> None:
    """Operations whose tokens the proxy sees, and those without any. Ids are compared with case."""
    method, path = operation.split()
    assert not endpoints.is_unmetered(method, segments(path))
    assert not endpoints.hides_model(method, segments(path))


@pytest.mark.parametrize("operation", ["POST /batches", "POST /batcheS", "POST /Images/edits", "post /completions"])
def test_operations_that_hide_their_model(operation: str) -> None:
    """The models of a batch are in its file."""
    method, path = operation.split()
    assert endpoints.hides_model(method, segments(path))
