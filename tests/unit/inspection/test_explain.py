"""The text of the proxy's decisions for a flow."""

from __future__ import annotations

import difflib
import json
from typing import Any

import pytest
from mitmproxy import flow as flows
from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy.inspection import explain as explanations
from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.body_diff import Splice
from azure_openai_proxy.inspection.flow_metadata import ClientRequestHead


def ours(path: str = "/openai/deployments/prod/chat/completions?api-version=2024-10-21", **metadata: object) -> http.HTTPFlow:
    request = http.Request.make("POST", f"https://r.openai.azure.com{path}", b'{"model":"prod"}', http.Headers(api_key="[key]"))
    flow = tflow.tflow(req=request)
    asked = ClientRequestHead(
        "POST", "/v1/chat/completions", [("authorization", "Bearer [key]"), ("api-key", "x")], Splice(10, 2, b"gpt-4o")
    )
    known = {"operation": "POST /v1/chat/completions", "model": "gpt-4o", "deployment": "prod", "backend": "west"}
    flow.metadata = {
        f"azure_openai_{name}": value for name, value in (known | {"asked": flow_metadata.pack(asked)} | metadata).items() if value
    }
    return flow


def test_every_decision() -> None:
    """The text has operation, mapping, backend, version, and the changes to request and response."""
    flow = ours(
        azures=b'{"choices":[],"prompt_filter_results":[1]}',
        changed=["max_tokens"],
        compared="a\nb",
        record={"time": 1.0, "input_tokens": 1204, "user_agent": "a\nb"},
    )
    flow.response, flow.comment = http.Response.make(200, b"{}"), "the comment"
    expected = """\
POST /v1/chat/completions
  client   POST /v1/chat/completions
  mapping  gpt-4o → prod
  backend  west https://r.openai.azure.com:443
  version  2024-10-21, dated
  azure    POST /openai/deployments/prod/chat/completions?api-version=2024-10-21
  body     gpt-4o → prod at byte 10, the rest of 16 bytes unchanged
  headers  removed authorization
  answer   200 · the comment
  changed  prompt_filter_results: [1]
  usage    input_tokens 1,204, user_agent a\\nb
  repairs  max_tokens
  compared \n  a\n\n  b"""
    assert expected == explanations.explain(flow)


@pytest.mark.parametrize(("path", "version"), [("/openai/v1/x", "v1"), ("/openai/v1/x?api-version=preview", "v1 (preview)")])
def test_versions(path: str, version: str) -> None:
    """The api-version is shown in Azure's form."""
    assert f"  version  {version}\n" in explanations.explain(ours(path))


def test_unchanged_requests() -> None:
    """An unmapped model and an unchanged body are reported as such, with the added headers."""
    flow = ours("/x", deployment="gpt-4o", asked=flow_metadata.pack(ClientRequestHead("POST", "/x", [])))
    flow.error = flows.Error("refused")
    told = explanations.explain(flow)
    assert ["gpt-4o, not mapped", "unchanged, 16 bytes", "added api-key", "refused"] == [
        line.split(maxsplit=1)[1] for line in told.splitlines() if line.split()[0] in ("mapping", "body", "headers", "error")
    ]
    flow.request.content = b""
    assert "  body" not in explanations.explain(flow)


def test_flows_without_an_upstream_request() -> None:
    """A flow without an upstream request, a flow of another host and a flow with little metadata are explained too."""
    flow = ours(deployment=None, backend=None, asked=None, model=None)
    flow.response = http.Response.make(200, b"{}")
    expected = "POST /v1/chat/completions\n  azure    no upstream request: the proxy responded itself\n  answer   200"
    assert expected == explanations.explain(flow)
    flow.metadata = {}
    assert explanations.explain(flow).endswith("not an OpenAI request, passed unchanged")
    assert "  backend" in explanations.explain(ours(asked=None))


def test_rewritten_for_no_reason_that_is_known() -> None:
    """A response that cannot be compared is reported as rewritten."""
    flow = ours(azures=b"<html>")
    flow.response = http.Response.make(500, b"{}")
    assert "  changed  rewritten" in explanations.explain(flow)


def test_two_answers() -> None:
    """The comparison shows the share of equal words and the lines that differ, with the error of a missing response."""
    one, other = ours(), ours()
    one.response = http.Response.make(200, b'{"choices":[{"message":{"content":"the same words"}}]}')
    other.response = http.Response.make(200, b'{"choices":[{"message":{"content":"the other words"}}]}')
    one.comment, other.comment = "one", "other"
    compared = explanations.compare(one, other)
    assert compared.startswith("one\nother\nthe words are 80% the same\n")
    assert compared.endswith("-the same words\n+the other words")
    other.response, other.error = None, flows.Error("refused")
    assert "+refused" in explanations.compare(one, other)
    other.error = None
    assert "the words are 0% the same" in explanations.compare(one, other)


def test_long_answers_are_compared_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long responses of repeated words, the worst case of a diff, are compared by counting words."""
    compared: list[int] = []
    original = difflib.SequenceMatcher.__init__

    def counting(self: Any, isjunk: Any, a: Any = "", b: Any = "", autojunk: bool = True) -> None:
        compared.append(len(a) * len(b))
        original(self, isjunk, a, b, autojunk)

    monkeypatch.setattr(difflib.SequenceMatcher, "__init__", counting)
    texts = "a " * 9_000, "a " * 4_500 + "b " * 4_500, "a\n" * 9_000
    one, other, lines = (ours(), ours(), ours())
    for flow, text in zip((one, other, lines), texts, strict=True):
        flow.response = http.Response.make(
            200, json.dumps({"choices": [{"message": {"content": text}}]}), {"content-type": "application/json"}
        )
    assert "the words are 50% the same" in explanations.compare(one, other)
    assert "the words are 100% the same" in explanations.compare(one, lines)
    assert max(compared) <= 1000 * 1000
