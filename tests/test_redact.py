"""Keys are hidden in flows and put back on the wire."""

from __future__ import annotations

import pytest
from mitmproxy import http

from azure_openai_proxy import redact
from azure_openai_proxy.redact import Hidden

KEY = "k-0123456789"


def request(path: str = "/v1/models", **headers: str) -> http.Request:
    made = http.Request.make("GET", f"http://localhost{path}")
    made.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return made


CASES = {
    "Bearer": (request(authorization=f"Bearer {KEY}"), "authorization", "Bearer [key]"),
    "a key alone": (request(Authorization=KEY), "authorization", "[key]"),
    "api-key": (request(api_key=KEY), "api-key", "[key]"),
    "a front's": (request(Ocp_Apim_Subscription_Key=KEY), "ocp-apim-subscription-key", "[key]"),
    "subprotocol": (
        request(sec_websocket_protocol=f"realtime, openai-insecure-api-key.{KEY}, openai-beta.realtime-v1"),
        "sec-websocket-protocol",
        "realtime, openai-insecure-api-key.[key], openai-beta.realtime-v1",
    ),
}


@pytest.mark.parametrize(("asked", "name", "masked"), CASES.values(), ids=CASES)
def test_a_key_in_a_header(asked: http.Request, name: str, masked: str) -> None:
    """It is masked in place, and shown again exactly as it was."""
    before = asked.headers.fields
    hidden = redact.hide(asked)
    assert masked == asked.headers[name]
    assert KEY not in repr(hidden)
    assert before == redact.show(asked, hidden).headers.fields


def test_a_key_in_the_query() -> None:
    """The rest of the query stays, byte for byte."""
    asked = request(f"/v1/x?a=%20b&Api%2Dkey={KEY}&api-key=&c")
    hidden = redact.hide(asked)
    assert "/v1/x?a=%20b&Api%2Dkey=[key]&api-key=&c" == asked.path
    assert f"/v1/x?a=%20b&Api%2Dkey={KEY}&api-key=&c" == redact.show(asked, hidden).path


def test_on_the_wire() -> None:
    """What goes out is another request, with the keys; the one that is looked at keeps its masks."""
    asked = request(f"/v1/x?api-key={KEY}", authorization=f"Bearer {KEY}", accept="*/*")
    plain = asked.copy()
    hidden = redact.hide(asked)
    masked = asked.copy()
    wire = redact.shown(asked, hidden)
    assert plain.get_state() == wire.get_state()
    assert masked.get_state() == asked.get_state()
    assert "*/*" == wire.headers["accept"]


def test_nothing_to_hide() -> None:
    """The very same headers stay."""
    asked = request("/v1/x?a=b")
    fields = asked.headers.fields
    assert Hidden() == redact.hide(asked)
    assert asked.headers.fields is fields


def test_hiding_twice_hides_nothing_more() -> None:
    """A mask is no key."""
    asked = request("/v1/x?api-key=k", authorization=f"Bearer {KEY}")
    redact.hide(asked)
    assert Hidden() == redact.hide(asked)


def test_what_somebody_changed_stays() -> None:
    """A person may put another key into a request that waits in mitmweb."""
    asked = request("/v1/x?api-key=k", api_key=KEY)
    hidden = redact.hide(asked)
    asked.headers["api-key"], asked.path = "mine", "/other"
    redact.show(asked, hidden)
    assert ("mine", "/other") == (asked.headers["api-key"], asked.path)


def test_masks_are_taken_out() -> None:
    """Of a saved request nobody knows what they stood for; what was no key stays."""
    asked = request("/v1/x?a=b&api-key=[key]", authorization="Bearer [key]", accept="*/*")
    redact.without_masks(asked)
    assert ("/v1/x?a=b", False, "*/*") == (asked.path, "authorization" in asked.headers, asked.headers["accept"])


@pytest.mark.parametrize(
    "answer, kept",
    [
        (b'{"value": "ek_1", "session": {"model": "m"}}', b'{"value": "[key]", "session": {"model": "m"}}'),
        (b'{"client_secret":{"value":"ek_1","expires_at":1}}', b'{"client_secret":{"value":"[key]","expires_at":1}}'),
        (b'{"session":{"client_secret":{"value":"ek_1"}}}', b'{"session":{"client_secret":{"value":"[key]"}}}'),
        (b'{"client_secret":"ek_1","signing_secret":"w"}', b'{"client_secret":"[key]","signing_secret":"[key]"}'),
        (b'{"value":"ek_', b""),
        (b"", b""),
    ],
)
def test_a_secret_that_was_made_is_not_kept(answer: bytes, kept: bytes) -> None:
    """Whatever shape of answer it comes in; the rest stays, but for what cannot be read."""
    assert kept == redact.minted(answer)
