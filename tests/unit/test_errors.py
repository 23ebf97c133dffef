"""OpenAI-shaped errors."""

import json

import pytest

from azure_openai_proxy import errors


@pytest.mark.parametrize(
    ("error", "status", "type", "code"),
    [
        (errors.ProxyError("m"), 500, "server_error", None),
        (errors.BadRequest("m", param="p"), 400, "invalid_request_error", None),
        (errors.NoKey("m"), 401, "invalid_request_error", "invalid_api_key"),
        (errors.NotFound("m", code="c"), 404, "invalid_request_error", "c"),
        (errors.Failed(413, "request_too_large", "m"), 413, "invalid_request_error", "request_too_large"),
        (errors.Failed(502, "upstream_error", "m"), 502, "server_error", "upstream_error"),
    ],
)
def test_every_error_is_an_answer(error: errors.ProxyError, status: int, type: str, code: str | None) -> None:
    """Every response has the four members that SDKs read, and a request id."""
    response = errors.response(error)
    assert status == response.status_code
    assert {"error": {"message": "m", "type": type, "param": error.param, "code": code}} == json.loads(response.content or b"")
    assert response.headers["x-request-id"].startswith("req_")
    assert "application/json" == response.headers["content-type"]


def test_an_error_can_hold_more() -> None:
    """Additional members are kept, such as Azure's inner error."""
    assert {"a": 1} == json.loads(errors.body("m", "t", innererror={"a": 1}))["error"]["innererror"]


def test_retry_after() -> None:
    """The headers have the wait in whole seconds and in milliseconds, for different clients; none if the wait is unknown."""
    response = errors.response(errors.Unavailable(429, "rate_limit_exceeded", "later", 1.2345))
    assert (429, "2", "1235") == (response.status_code, response.headers["retry-after"], response.headers["retry-after-ms"])
    assert "retry-after" not in errors.response(errors.Unavailable(503, "x", "no", None)).headers
