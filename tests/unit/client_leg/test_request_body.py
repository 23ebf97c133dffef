"""The body of a request. tests/unit/mitmproxy_patches/test_streamed_uploads.py streams bodies through a proxy."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg.request_body import RequestBody


def body(*, may_stream: bool = False, header: tuple[str, str] = ("x", "y"), limit: int = 10) -> tuple[RequestBody, Any, Any]:
    policy, flow = Mock(), tflow.tflow()
    policy.may_stream_upload.return_value = may_stream
    flow.request.headers.pop("content-length", None)
    flow.request.headers[header[0]] = header[1]
    return RequestBody(policy, limit), flow, policy


@pytest.mark.parametrize(
    "max_body, body_size_limit, limit", [(None, None, None), (None, "1k", None), (10, None, 10), (10, "1k", 10), (2000, "1k", 1024)]
)
def test_the_limit(max_body: int | None, body_size_limit: str | None, limit: int | None) -> None:
    """It is the smaller of ours and mitmproxy's. A request that is not translated has only mitmproxy's."""
    options = Mock(body_size_limit=body_size_limit, stream_large_bodies=None)
    made = RequestBody.of(tflow.tflow(), Mock(max_body=Mock(return_value=max_body)), options)
    assert limit == (made and made._limit)


@pytest.mark.parametrize(
    "max_body, stream, large, streamed",
    [
        (99, True, "10", False),
        (99, True, "11", True),
        (99, True, None, True),
        (99, False, "10", False),
        (None, True, "10", True),
    ],
)
def test_mitmproxy_streams_no_translated_request(max_body: int | None, stream: bool, large: str | None, streamed: bool) -> None:
    """Its option `stream_large_bodies` is undone for a body that is larger; an addon may stream any."""
    flow, policy = tflow.tflow(), Mock(max_body=Mock(return_value=max_body))
    flow.request.headers["content-length"] = "11"
    flow.request.stream = stream
    RequestBody.of(flow, policy, Mock(body_size_limit=None, stream_large_bodies=large))
    assert streamed == flow.request.stream


@pytest.mark.parametrize(
    "header, code",
    [
        (("x", "y"), None),
        (("x", "y\x00"), "REQUEST_VALIDATION_FAILED"),
        (("content-length", "10"), None),
        (("content-length", "11"), "REQUEST_TOO_LARGE"),
        (("content-length", "eleven"), None),
    ],
)
def test_a_head(header: tuple[str, str], code: str | None) -> None:
    """It is refused for its characters and for its declared length."""
    refused, flow, _ = body(header=header)
    error = refused.error_in_head(flow)
    assert code == (error and error[1])


def test_a_size() -> None:
    """A body over the limit is refused, unless it may be streamed, which is asked once."""
    refused, flow, _ = body()
    error = refused.error_in_size(flow, 11)
    assert error
    assert "larger than 10 bytes" in error[0]
    streamed, flow, policy = body(may_stream=True)
    assert [None, None] == [streamed.error_in_size(flow, size) for size in (11, 12)]
    policy.may_stream_upload.assert_called_once()
    streamed.start_stream(flow, b"start")
    assert b"start" == policy.start_streamed_upload.call_args[0][1]
    assert not streamed.may_stream(flow)


def test_a_large_body() -> None:
    """It is moved into a buffer that grows without copies, once."""
    received = bytearray(b"abc")
    gathered = RequestBody.gathered(received)
    assert (b"abc", b"") == (bytes(gathered), bytes(received))
    assert gathered is RequestBody.gathered(gathered)
