"""The comment and the metadata of a flow."""

from __future__ import annotations

import pytest
from mitmproxy.io import tnetstring
from mitmproxy.test import tflow

from azure_openai_proxy.accounting.record import CallRecord, Tokens
from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.body_diff import Splice
from azure_openai_proxy.inspection.flow_metadata import NOTHING, ClientRequestHead, Facts
from azure_openai_proxy.inspection.response_text import Chunk

COMMENTS = {
    "gpt-4o → dep · 1,204+87 tokens (1,024 cached) · $0.0031 · first chunk 0.4 s": Facts(
        model="gpt-4o",
        deployment="dep",
        stream=True,
        first=0.391,
        backend="default",
        record=CallRecord(time=1.0, request_id="r", trace_id="t", tokens=Tokens(1204, 1024, output=87), cost_usd=0.0031),
    ),
    "gpt-4o · first chunk 0.07 s": Facts(
        model="gpt-4o", stream=True, first=0.071, record=CallRecord(time=1.0, request_id="r", trace_id="t")
    ),
    "gpt-4o · at west · 1.5 s · max_tokens → max_completion_tokens": Facts(
        model="gpt-4o", deployment="gpt-4o", backend="west", status=200, total=1.5, changed=("max_tokens → max_completion_tokens",)
    ),
    "GET /v1/models · 404": Facts(operation="GET /v1/models", status=404),
    "m": Facts(model="m", stream=True),
    "prod": Facts(deployment="prod"),
    "broke off": Facts(changed=("broke off",)),
}


@pytest.mark.parametrize(("expected", "facts"), COMMENTS.items())
def test_a_comment_is_one_line(expected: str, facts: Facts) -> None:
    """A comment is one line and omits unknown facts."""
    assert expected == flow_metadata.comment(facts)


def test_text_that_is_not_utf8_can_be_saved() -> None:
    """A client can put any bytes into a path or a model."""
    told = flow_metadata.metadata(Facts("GET /\udcff", model="\ud800", changed=("\udcff",)))
    assert {"operation": "GET /\\udcff", "model": "\\ud800", "changed": ["\\udcff"]} == {
        name.removeprefix("azure_openai_"): value for name, value in told.items()
    }
    tnetstring.dumps(told)


def test_unknown_facts_have_no_metadata() -> None:
    """Metadata has known facts only."""
    assert {} == flow_metadata.metadata(Facts())


def test_metadata_can_be_saved() -> None:
    """The metadata survives mitmproxy's flow file format unchanged."""
    told = flow_metadata.metadata(Facts(operation="POST /v1/x", model="m", first=0.12345, changed=("a",)))
    expected = {
        "azure_openai_operation": "POST /v1/x",
        "azure_openai_model": "m",
        "azure_openai_first_chunk": 0.1235,
        "azure_openai_changed": ["a"],
    }
    assert expected == told == tnetstring.loads(tnetstring.dumps(told))


def test_metadata_round_trip() -> None:
    """The client's request and Azure's response are read back from a saved flow."""
    flow = tflow.tflow()
    asked = ClientRequestHead("POST", "/v1/x", [("a", "b")], Splice(1, 2, b"x"))
    flow.metadata = {
        "azure_openai_operation": "POST /v1/x",
        "azure_openai_asked": flow_metadata.pack(asked),
        "azure_openai_chunks": [0.5, 10],
        "azure_openai_answered": ["200 OK", [["c", "d"]]],
        "azure_openai_azures": b"azure's",
    }
    saved = flow_metadata.parse(flow)
    assert (asked, (Chunk(0.5, 10),), "200 OK", (("c", "d"),), b"azure's") == saved
    assert flow_metadata.is_ours(flow)
    assert b"1x23" == asked.body(b"1y23")
    assert b"same" == asked._replace(splice=None).body(b"same")


def test_packed_values_have_a_short_repr() -> None:
    """Packed values have a short repr, since the console prints all metadata, and survive saving."""
    flow = tflow.tflow()
    flow.metadata = {
        "azure_openai_asked": ["POST", "/x", [], None],
        "azure_openai_chunks": 3,
        "azure_openai_azures": b"x" * 5000,
        "own": [1],
    }
    before = tnetstring.dumps(flow.metadata)
    flow_metadata.repack(flow)
    expected = "{'azure_openai_asked': …, 'azure_openai_chunks': 3, 'azure_openai_azures': … 5.0 kB, 'own': [1]}"
    assert (expected, before) == (repr(flow.metadata), tnetstring.dumps(flow.metadata))
    assert expected == repr(flow.copy().metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"azure_openai_azures": "text"},
        {"azure_openai_azures": 1},
        {"azure_openai_azures": 10**20},
        {"azure_openai_chunks": 3},
        {"azure_openai_chunks": [10**400, 1]},
        {"azure_openai_asked": ["a"]},
        {"azure_openai_asked": ["POST", "/", [[1, 2]], None]},
    ],
)
def test_invalid_metadata_counts_as_absent(metadata: dict[str, object]) -> None:
    """Invalid metadata, as in an untrusted flow file, counts as absent."""
    flow = tflow.tflow()
    flow.metadata = metadata
    assert NOTHING == flow_metadata.parse(flow)
    assert not flow_metadata.is_ours(flow)
    assert not flow_metadata.is_ours(None)


def test_a_message_as_text() -> None:
    """A message is shown as first line, headers, a blank line and the body."""
    assert "GET /\na: b\n\nbody" == flow_metadata.message("GET /", [("a", "b")], b"body")
    assert "\n\nbody" == flow_metadata.message("", [], b"body")
