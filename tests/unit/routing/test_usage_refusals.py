"""Deployments that refuse `stream_options`."""

from __future__ import annotations

import json

import pytest
from mitmproxy import http

from azure_openai_proxy.formats.json_scan import LARGE
from azure_openai_proxy.routing.learned_repairs import Key
from azure_openai_proxy.routing.usage_refusals import EXPIRES, UsageRefusals, is_refusal, may_use_data_sources


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}, True),
        (400, {"error": {"message": "Unknown parameter: 'stream_options.include_usage'."}}, True),
        (400, {"error": {"message": "1 validation error for Request\nbody -> stream_options\n  extra fields not permitted"}}, True),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}, True),
        (400, {"error": {"message": "Unrecognized request argument supplied: my_stream_options_2"}}, False),
        (400, {"error": {"message": "no"}}, False),
        (500, {"error": {"message": "stream_options"}}, False),
    ],
)
def test_what_is_a_refusal(status: int, body: object, expected: bool) -> None:
    """An error of a 400 or a 422 that names the option."""
    assert expected == is_refusal(http.Response.make(status, json.dumps(body)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model":"m","stream":true}', False),
        (b'{"messages":[{"data_sources":"\\u00e9"}]}', False),
        (b'{"data_sources":[]}', True),
        (b'{"data\\u005fsources":[]}', True),
        (b'{"Data_Sources":[]}', True),
        (b"{", True),
        (b"[]", True),
        (b'{"a":"%b"}' % (b"x" * LARGE), True),
    ],
)
def test_requests_with_data_of_their_own(content: bytes, expected: bool) -> None:
    """A client cannot hide them. A request of which nothing is known may have them."""
    assert expected == may_use_data_sources(content)


def test_they_are_bounded_and_expire() -> None:
    """The oldest is dropped when there are too many, and each is asked again after an hour."""
    now = [0.0]
    refusals = UsageRefusals(2, lambda: now[0])
    one, two, three = (Key("a", name) for name in "123")
    for key in (one, two, one, three):
        refusals.add(key)
    assert 2 == len(refusals)
    assert [True, False, True] == [key in refusals for key in (one, two, three)]
    now[0] = EXPIRES
    assert one not in refusals
    refusals.clear()
    assert 0 == len(refusals)
