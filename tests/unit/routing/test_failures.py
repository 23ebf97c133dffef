"""What a failed attempt says."""

from __future__ import annotations

import json

import pytest
from mitmproxy import http

from azure_openai_proxy.api import operation
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.routing import failures


def failed(status: int, **error: object) -> http.Response:
    return http.Response.make(status, json.dumps({"error": error}) if error else b"")


def test_causes() -> None:
    """A status, or the code of a failure without a response."""
    assert ("429", "upstream_error") == (failures.cause(failed(429)), failures.cause(Failure(502, "upstream_error", "cut")))


@pytest.mark.parametrize(
    ("response", "missing"),
    [
        (failed(404, code="DeploymentNotFound"), True),
        (failed(404, code="NotFound"), False),
        (failed(404, code=7), False),
        (failed(401), True),
        (failed(403, code="Forbidden"), True),
        (failed(403), False),
        (failed(400, code="DeploymentNotFound"), False),
    ],
)
def test_missing_deployments(response: http.Response, missing: bool) -> None:
    """A deployment that does not exist, or that the key may not use; not a wrong path of the client or the 403 of a gateway."""
    assert missing == failures.is_missing(response)


@pytest.mark.parametrize(
    ("response", "unknown"),
    [
        (failed(400, code="previous_response_not_found"), True),
        (failed(400, code="invalid_encrypted_content"), True),
        (failed(400, message="Item with id 'rs_1' not found."), True),
        (failed(400, message="No."), False),
        (failed(404, code="previous_response_not_found"), False),
    ],
)
def test_unknown_objects(response: http.Response, unknown: bool) -> None:
    """Items and responses that another backend may have made."""
    assert unknown == failures.is_unknown(response)


@pytest.mark.parametrize(
    ("method", "path", "content", "repeatable"),
    [
        ("GET", "/v1/files", b"", True),
        ("POST", "/v1/chat/completions", b'{"model":"m"}', True),
        ("POST", "/v1/responses", b'{"model":"m","background":true}', False),
        ("POST", "/v1/responses", b'{"model":"m","input":"\\"background\\""}', True),
        ("POST", "/v1/files", b"", False),
        ("PATCH", "/v1/files", b"", False),
    ],
)
def test_repeatable_requests(method: str, path: str, content: bytes, repeatable: bool) -> None:
    """Reads, and operations that create nothing at Azure."""
    call = operation.recognise(method, path, {"content-type": "application/json"}, content)
    assert call
    assert repeatable == failures.is_repeatable(call, ClientRequest(http.Headers(), Query(""), content))


def test_ranks() -> None:
    """The failure that says most to the client ranks highest."""
    refusal = failed(400, param="service_tier", message="no")
    ranked = [refusal, failed(503), failed(429), failed(400, message="no")]
    assert [1, 2, 3, 4] == [failures.rank(response, "flex") for response in ranked]
    assert (4, 1) == (failures.rank(refusal, ""), failures.rank(failed(404), ""))
    assert (True, False) == (failures.is_tier_refusal(refusal, "flex"), failures.is_tier_refusal(refusal, ""))
