"""The content views, called through mitmproxy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from mitmproxy import contentviews, http, options
from mitmproxy.contentviews import Metadata
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.inspection import contentviews as contentviews_module
from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.body_diff import Splice
from azure_openai_proxy.inspection.flow_metadata import ClientRequestHead

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b'{"model":"prod","messages":[{"role":"user","content":"hello"}]}'
ANSWER = b'{"choices":[{"message":{"content":"hi"}}]}'


@pytest.fixture
def flow() -> http.HTTPFlow:
    """A flow of an OpenAI request."""
    made = tflow.tflow(req=http.Request.make("POST", "https://r/openai/x", BODY, http.Headers(content_type="application/json")))
    made.response = http.Response.make(200, ANSWER, {"content-type": "application/json"})
    asked = ClientRequestHead("POST", "/v1/chat/completions", [("authorization", "Bearer [key]")], Splice(10, len(BODY) - 14, b"gpt-4o"))
    made.metadata = {
        "azure_openai_operation": "POST /v1/chat/completions",
        "azure_openai_asked": flow_metadata.pack(asked),
        "azure_openai_answered": ["200 OK", [["x-ms-region", "Norway"]]],
        "azure_openai_azures": b'{"choices":[],"prompt_filter_results":[1]}',
    }
    return made


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with taddons.context() as context:
        contentviews_module.register(context.options)
        yield


def shown(message: http.Message | WebSocketMessage, flow: http.HTTPFlow, view: str = "auto") -> tuple[str | None, str]:
    result = contentviews.prettify_message(message, flow, view)
    return result.view_name, result.text


def test_views_choose_themselves(flow: http.HTTPFlow) -> None:
    """The views are the default for the request and the response of an OpenAI flow."""
    assert flow.response
    assert ("Conversation", "prod\n\n── user\nhello") == shown(flow.request, flow)
    name, text = shown(flow.response, flow)
    assert ("Answer", True, True) == (name, "── assistant\nhi" in text, "prompt_filter_results: [1]" in text)


def test_others_keep_their_views(flow: http.HTTPFlow) -> None:
    """Other flows, audio and empty bodies keep mitmproxy's default view, and the addon's views stay selectable."""
    assert flow.response
    flow.response.headers["content-type"] = "audio/mpeg"
    flow.response.content = b"\xff\xf3"
    assert "Answer" != shown(flow.response, flow)[0]
    flow.metadata.clear()
    assert ("JSON", True) == (shown(flow.request, flow)[0], "hello" in shown(flow.request, flow, "conversation")[1])
    flow.request.content = b""
    assert "Conversation" != shown(flow.request, flow)[0]


def test_the_other_side_of_each(flow: http.HTTPFlow) -> None:
    """The views show the client's request with its model, and Azure's response with the members that the proxy dropped."""
    assert flow.response
    _, asked = shown(flow.request, flow, "as the client sent it")
    _, answered = shown(flow.response, flow, "as azure sent it")
    assert "POST /v1/chat/completions\nauthorization: Bearer [key]\n\n" + BODY.decode().replace("prod", "gpt-4o") == asked
    assert '200 OK\nx-ms-region: Norway\n\n{"choices":[],"prompt_filter_results":[1]}' == answered


def test_an_other_side_that_is_not_there(flow: http.HTTPFlow) -> None:
    """A missing request is reported, and a missing response falls back to the flow's own."""
    assert flow.response
    flow.metadata = {"azure_openai_operation": "x"}
    assert "does not contain the client's request" in shown(flow.request, flow, "as the client sent it")[1]
    assert ANSWER.decode() in shown(flow.response, flow, "as azure sent it")[1]
    assert "hi" in contentviews_module.ResponseView().prettify(ANSWER, Metadata(content_type="application/json"))
    assert contentviews_module.AsAzureView().prettify(b"x", Metadata()).endswith("x")
    assert contentviews_module.ResponseView().render_priority(ANSWER, Metadata()) == 0


def test_realtime_messages(flow: http.HTTPFlow) -> None:
    """The view of a realtime message follows from its direction."""
    asked = WebSocketMessage(Opcode.TEXT, True, b'{"type":"session.update","session":{"instructions":"Speak."}}')
    answered = WebSocketMessage(Opcode.TEXT, False, b'{"type":"response.text.delta","delta":"wor"}')
    assert ("Conversation", True) == ((result := shown(asked, flow))[0], "── instructions\nSpeak." in result[1])
    assert ("Answer", True) == ((result := shown(answered, flow))[0], "wor" in result[1])


def test_the_list_has_a_column_for_comments() -> None:
    """The list gets a comment column unless the user configured columns or the tool has none."""
    chosen = options.Options()
    chosen.add_option("web_columns", Sequence[str], ["path"], "")
    contentviews_module.register(chosen)
    contentviews_module.register(chosen)
    assert ["path", "comment"] == list(chosen.web_columns)
