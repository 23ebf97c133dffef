"""Affinity: which backend stores which object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.routing import affinity

if TYPE_CHECKING:
    from azure_openai_proxy.api.operation import Call

JSON = {"content-type": "application/json"}


def call(method: str, path: str, body: bytes = b"") -> Call:
    found = operations.recognise(method, path, JSON, body)
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
    """An id in the path is distinguished from the API's words and from a model's name."""
    assert ids == affinity.ids(call(method, path, b'{"prompt":"x"}'))


def test_owners() -> None:
    """The owner is found by an id in the path or the body, and the oldest entry is evicted."""
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
    "method, path, content, ids",
    [
        ("POST", "/v1/files", b"", ["x"]),
        ("POST", "/v1/responses", b'{"model":"m"}', ["x"]),
        ("GET", "/v1/responses/resp_123", b"", ["x"]),
        ("POST", "/v1/chat/completions", b'{"model":"m","store":true}', ["x"]),
        ("POST", "/v1/chat/completions", b'{"model":"m"}', []),
        ("GET", "/v1/files/file-abc123", b"", []),
    ],
)
def test_ids_of_stored_objects(method: str, path: str, content: bytes, ids: list[str]) -> None:
    """Only the id of a stored object is recorded, whether the request created or fetched it."""
    assert ids == affinity.kept(call(method, path, content), content, b'{"id":"x"}')


ENCRYPTED = "gAAAAA" + "x" * 80
ITEM = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": ENCRYPTED}


@pytest.mark.parametrize(
    "answer, ids",
    [
        ({"id": "a"}, ["a"]),
        ({"type": "response.created", "response": {"id": "r"}}, ["r"]),
        ({"id": "resp_1", "output": [ITEM, {"id": "fc_1", "arguments": '{"id": "fc_2"}'}]}, ["resp_1", "rs_1", ENCRYPTED[-64:], "fc_1"]),
        ({"type": "response.output_item.done", "item": ITEM, "output_index": 0}, ["rs_1", ENCRYPTED[-64:]]),
        ({"response": {"output": [ITEM]}}, ["rs_1", ENCRYPTED[-64:]]),
        ({"item": {"id": "x" * 300, "encrypted_content": "short", "content": [{"id": "deep"}], "type": "id"}}, []),
        ({"metadata": {"id": "rs_2"}, "tools": [{"id": "rs_2"}], "text": {"format": {"output": [{"id": "rs_2"}]}}}, []),
        ({"a": {"b": {"c": {"d": {"e": {"id": "rs_2"}}}}}}, []),
        ({}, []),
        (["id", "x"], []),
        ({"id": 1}, []),
        ({"id": 'q"uo[t}ed'}, ['q\\"uo[t}ed']),
    ],
)
def test_ids_in_an_answer(answer: object, ids: list[str]) -> None:
    """A response, an event and a frame yield the ids that Azure created, and none that a client may have put there."""
    assert ids == affinity.made(json.dumps(answer).encode())


@pytest.mark.parametrize("answer", [b"no", b"]", b'{"id":"a', b"", b'{"item":{"id":"x"'[:-1], b"\xff" * 10])
def test_an_answer_that_is_no_json(answer: bytes) -> None:
    """A response that is not JSON yields no ids."""
    assert [] == affinity.made(answer)


def test_the_work_for_one_answer_is_bounded() -> None:
    """The number of scanned tokens is limited, regardless of the number of brackets."""
    assert [] == affinity.made(b"[" + b"[]," * 100_000 + b'{"id":"x"}]')
    assert ["x"] == affinity.made(b'{"text":"' + b'\\"[' * 100_000 + b'","id":"x"}')


def test_owners_of_items() -> None:
    """The owner is found by the newest item id in the body, and by the encrypted content that only one backend can decrypt."""
    owners = affinity.Owners()
    owners.claim("fc_1", "a")
    owners.claim("fc_1", "b")
    owners.claim(ENCRYPTED[-64:], "b")
    owners.claim("msg_2", "c")
    asked = call("POST", "/v1/responses", b'{"model":"m"}')

    def of(*items: object, filling: int = 0) -> str | None:
        return owners.of(asked, json.dumps({"input": [*items, "x" * filling]}).encode())

    assert "a" == of({"type": "item_reference", "id": "fc_1"})
    assert "b" == of({"type": "reasoning", "encrypted_content": ENCRYPTED})
    assert "b" == of({"type": "reasoning", "encrypted_content": "old" + "y" * 80}, {"encrypted_content": ENCRYPTED}, {"id": "msg_2"})
    assert "c" == of({"id": "fc_1"}, {"id": "msg_2"})
    assert "a" == of({"id": "fc_1"}, filling=3 << 20)
    assert None is of({"content": 'the text "fc_1"', "encrypted_content": None, "x": "encrypted_content"})
    assert None is owners.of(asked, b'{"encrypted_content":"' + ENCRYPTED.encode())


@pytest.mark.parametrize(
    ("body", "owner"),
    [
        ({"messages": [{"role": "user", "content": "resp_1"}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "resp_1"}]}]}, None),
        ({"input": ["a", "resp_1"]}, None),
        ({"prompt": "resp_1"}, None),
        ({"previous_response_id": "resp_1"}, "a"),
        ({"tools": [{"vector_store_ids": ["vs_2", "resp_1"]}]}, "a"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "resp_1"}}]}]}, "a"),
    ],
)
def test_an_id_in_a_text(body: dict[str, object], owner: str | None) -> None:
    """An id in the text of a conversation binds nothing."""
    owners = affinity.Owners()
    owners.claim("resp_1", "a")
    content = json.dumps(body).encode()
    assert owner == owners.of(call("POST", "/v1/chat/completions", b'{"model":"m"}'), content)


def test_the_work_for_one_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of looked-up ids is limited, whatever the request contains."""
    monkeypatch.setattr(affinity, "_MOST_NAMED", 3)
    monkeypatch.setattr(affinity, "_MOST_ENCRYPTED", 3)
    owners = affinity.Owners()
    owners.claim("fc_1", "a")
    owners.claim(ENCRYPTED[-64:], "b")
    asked = call("POST", "/v1/responses", b'{"model":"m"}')
    assert None is owners.of(asked, b'["aa_1","aa_2","aa_3","fc_1"]')
    assert None is owners.of(asked, b'{"encrypted_content":"%b"}' % ENCRYPTED.encode() + b'{"encrypted_content":1}' * 3)


def test_owners_of_other_replicas() -> None:
    """A new id and a new owner are published, once; what other replicas know is not, and the newest ids come first."""
    owners = affinity.Owners()
    published: list[tuple[str, str]] = []
    owners.publish = lambda *known: published.append(known)
    for id, backend in [("resp_1", "east"), ("resp_1", "east"), ("resp_1", "west")]:
        owners.add(id, backend)
    owners.learn("resp_2", "east")
    assert [("resp_1", "east"), ("resp_1", "west")] == published
    assert [("resp_2", "east")] == owners.newest(1)
    assert [("resp_2", "east"), ("resp_1", "west")] == owners.newest(9)
