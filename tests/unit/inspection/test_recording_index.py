"""The choice of the recording for a request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import flow as flows
from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy.errors import NotFound
from azure_openai_proxy.inspection import flow_metadata, recording_index
from azure_openai_proxy.inspection.flow_metadata import ClientRequestHead
from azure_openai_proxy.inspection.recording_index import Key, Recordings

if TYPE_CHECKING:
    import re

OPERATION = "POST /v1/chat/completions"


def recorded(body: Any = None, *, answer: str = "a", model: str | None = "m", operation: str = OPERATION) -> http.HTTPFlow:
    made = tflow.tflow(req=http.Request.make("POST", "https://r/openai/x", json.dumps(body), http.Headers(content_type="application/json")))
    made.response = http.Response.make(200, answer)
    made.metadata = {
        "azure_openai_operation": operation,
        "azure_openai_asked": flow_metadata.pack(ClientRequestHead("POST", "/v1/x?a=b&api-version=1", [])),
    }
    if model:
        made.metadata["azure_openai_model"] = model
    return made


def wanted(body: Any = None, *, model: str | None = "m", operation: str = OPERATION, path: str = "/v1/x?api-key=k&a=b") -> Key:
    return recording_index.key(operation, model, path, "application/json", json.dumps(body).encode())


SAME = {
    "order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "the user": ({"a": 1, "user": "x"}, {"a": 1}),
    "ids of calls": (
        {"messages": [{"tool_calls": [{"id": "call_1", "type": "function"}]}, {"tool_call_id": "call_1"}]},
        {"messages": [{"tool_calls": [{"id": "call_2", "type": "function"}]}, {"tool_call_id": "call_2"}]},
    ),
    "dates": ({"a": "today is 2026-11-23, 2026-11-23T10:00:00Z"}, {"a": "today is 2031-01-01, 2026-11-23T11:00:00.123+01:00"}),
    "UUIDs": ({"a": "id 0B9D3E2C-7c1d-4e55-9d3f-0123456789ab"}, {"a": "id 11111111-2222-3333-4444-555555555555"}),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_these_mean_the_same(one: Any, other: Any) -> None:
    """Bodies match if they differ only in values that change from run to run."""
    assert recording_index.meaning(json.dumps(one).encode()) == recording_index.meaning(json.dumps(other, indent=2).encode())


def test_these_do_not() -> None:
    """Bodies do not match if a text differs, a member has another path, or dates differ that are not ignored."""
    assert recording_index.meaning(b'{"a": "x"}') != recording_index.meaning(b'{"a": "y"}')
    assert recording_index.meaning(b'{"a": {"user": "x"}}') != recording_index.meaning(b'{"a": {"user": "y"}}')
    assert recording_index.meaning(b'{"a": "2026-11-23"}', ignored=["a.b"]) != recording_index.meaning(
        b'{"a": "2026-11-24"}', ignored=["a.b"]
    )


def test_bodies_that_are_no_json() -> None:
    """Forms match regardless of their boundary, and other bytes match only if they are equal."""
    form = "multipart/form-data; boundary="
    assert recording_index.meaning(b"--X1\r\na\r\n--X1--", form + "X1") == recording_index.meaning(b"--Y22\r\na\r\n--Y22--", form + "Y22")
    assert b"--\r\na\r\n----" == recording_index.meaning(b"--\xff\r\na\r\n--\xff--", form + "\udcff")
    assert b"\x00" == recording_index.meaning(b"\x00")


def test_the_next_answer_and_then_the_last() -> None:
    """A request that was recorded twice gets the first, the second and then the second response again."""
    found = Recordings([recorded(answer="a"), recorded(answer="b")])
    assert 2 == len(found)
    assert ["a", "b", "b"] == [str(found.next(wanted()).response.text) for _ in range(3)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            wanted(operation="POST /v1/embeddings", model=None),
            "This|No answer to this POST /v1/embeddings was recorded: the recording has no such operation",
        ),
        (wanted(model="n"), "for n was recorded: the recording has this operation for m"),
        (wanted({"other": 1}), "the recording has this operation and model, but with another body or query"),
    ],
    ids=["operation", "model", "body"],
)
def test_a_missing_recording_is_explained(key: Key, said: str) -> None:
    """A missing recording is a 404 that says how the request differs from the recorded ones."""
    with pytest.raises(NotFound, match=said) as error:
        Recordings([recorded()]).next(key)
    assert (404, "not_recorded") == (error.value.status, error.value.code)


def test_unusable_flows_are_left_to_mitmproxy() -> None:
    """Flows of other hosts, failed flows and flows without a stored body are left to mitmproxy's own replay."""
    broken, lost, plain = recorded(), recorded(), recorded()
    broken.error = flows.Error("gone")
    assert lost.response
    lost.response.raw_content = None
    del plain.metadata["azure_openai_asked"]
    others = [broken, lost, plain, tflow.tflow(resp=True)]
    assert (0, others) == (len(found := Recordings(others)), found.others)


class Counting:
    """A pattern that counts the characters it searches."""

    def __init__(self, pattern: re.Pattern[str], counts: list[int]) -> None:
        self._pattern, self._counts = pattern, counts

    def sub(self, to: str, text: str) -> str:
        self._counts.append(len(text))
        return self._pattern.sub(to, text)


@pytest.mark.parametrize("size", [1_000_000, 4_000_000, 16_000_000])
def test_large_bodies_take_bounded_work(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dates are ignored beside an image of any size, and are not searched for inside it; another image is another body."""
    counts: list[int] = []
    for name in ("_DATES", "_UUIDS"):
        monkeypatch.setattr(recording_index, name, Counting(getattr(recording_index, name), counts))

    def body(day: str, pixel: str) -> bytes:
        return json.dumps({"text": f"today is {day}", "list": [{"image": pixel * size}], "lone": "\udcff" * 70_000}).encode()

    first, same, other = (
        recording_index.meaning(one) for one in (body("2026-11-23", "A"), body("2031-01-01", "A"), body("2026-11-23", "B"))
    )
    assert first == same != other
    assert max(counts) < 2_000


def test_a_body_with_too_many_values_is_compared_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not parsed."""
    body = b"[" + b"[]," * 400_000 + b"1]"
    monkeypatch.setattr(json, "loads", None)
    assert body == recording_index.meaning(body)
