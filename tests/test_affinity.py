"""Who has what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy import affinity, calls

if TYPE_CHECKING:
    from azure_openai_proxy.calls import Call

JSON = {"content-type": "application/json"}


def call(method: str, path: str, body: bytes = b"") -> Call:
    found = calls.recognise(method, path, JSON, body)
    assert found
    return found


@pytest.mark.parametrize(
    "method, path, ids",
    [
        ("GET", "/v1/files/file-abc123", ["file-abc123"]),
        ("GET", "/v1/responses/resp_98765/input_items", ["resp_98765"]),
        ("GET", "/v1/vector_stores/vs_1234/files/file-5678", ["vs_1234", "file-5678"]),
        ("GET", "/v1/fine_tuning/jobs", []),
        ("POST", "/v1/realtime/client_secrets", []),
        ("POST", "/v1/engines/gpt-4-0613/completions", []),
    ],
)
def test_ids_in_a_path(method: str, path: str, ids: list[str]) -> None:
    """Ids are told from the words of the API; a model's name is none."""
    assert ids == affinity.ids(call(method, path, b'{"prompt":"x"}'))


def test_owners() -> None:
    """Found by the path or by what the body mentions; the oldest is forgotten."""
    owners = affinity.Owners(most=2)
    asked = call("GET", "/v1/files/file-abc123")
    assert None is owners.of(asked, b"")
    owners.add("file-abc123", "a")
    owners.add("resp_456789", "b")
    assert "a" == owners.of(asked, b"")
    assert "b" == owners.of(call("POST", "/v1/responses", b'{"model":"m"}'), b'{"previous_response_id":"resp_456789"}')
    owners.add("batch_789012", "c")
    assert (None, 2) == (owners.of(asked, b'"file-unknown1"'), len(owners))


@pytest.mark.parametrize(
    "method, path, content, id",
    [
        ("POST", "/v1/files", b"", "x"),
        ("POST", "/v1/responses", b'{"model":"m"}', "x"),
        ("POST", "/v1/chat/completions", b'{"model":"m","store":true}', "x"),
        ("POST", "/v1/chat/completions", b'{"model":"m"}', None),
        ("GET", "/v1/files/file-abc123", b"", None),
    ],
)
def test_what_azure_keeps(method: str, path: str, content: bytes, id: str | None) -> None:
    """The id of what a request made, if it stays."""
    assert id == affinity.kept(call(method, path, content), content, b'{"id":"x"}')


@pytest.mark.parametrize(
    "answer, id",
    [
        (b'{"id":"a"}', "a"),
        (b'{"type":"response.created","response":{"id":"r"}}', "r"),
        (b"{}", None),
        (b"[]", None),
        (b'{"id":1}', None),
        (b"no", None),
    ],
)
def test_ids_in_an_answer(answer: bytes, id: str | None) -> None:
    """Of a whole answer, or of a stream's first event."""
    assert id == affinity.created(answer)
