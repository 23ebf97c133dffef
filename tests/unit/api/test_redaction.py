"""Masking of keys in flows."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from azure_openai_proxy.api import redaction
from azure_openai_proxy.api.redaction import Hidden

KEY = "k-0123456789"


def request(path: str = "/v1/models", **headers: str) -> http.Request:
    made = http.Request.make("GET", f"http://localhost{path}")
    made.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return made


CASES = {
    "Bearer": (request(authorization=f"Bearer {KEY}"), "authorization", "Bearer [key]"),
    "a key alone": (request(Authorization=KEY), "authorization", "[key]"),
    "api-key": (request(api_key=KEY), "api-key", "[key]"),
    "a blank in the name": (http.Request.make("GET", "http://a/", headers=[(b"Authorization ", KEY.encode())]), "authorization ", "[key]"),
    "a front's": (request(Ocp_Apim_Subscription_Key=KEY), "ocp-apim-subscription-key", "[key]"),
    "subprotocol": (
        request(sec_websocket_protocol=f"realtime, openai-insecure-api-key.{KEY}, openai-beta.realtime-v1"),
        "sec-websocket-protocol",
        "realtime, openai-insecure-api-key.[key], openai-beta.realtime-v1",
    ),
}


@pytest.mark.parametrize(("asked", "name", "masked"), CASES.values(), ids=CASES)
def test_a_key_in_a_header(asked: http.Request, name: str, masked: str) -> None:
    """A key in a header is masked in place and restored exactly."""
    before = asked.headers.fields
    hidden = redaction.hide(asked)
    assert masked == asked.headers[name]
    assert KEY not in repr(hidden)
    assert before == redaction.show(asked, hidden).headers.fields


def test_a_key_that_is_repeated() -> None:
    """A key of some length is masked in other headers too, but not in those that mitmproxy reads, and restored exactly."""
    long = f"sk-proj-{KEY}"
    asked = request(
        authorization=f"Bearer {long}", api_key=f"{long}2", cookie=f"a={long}2; b={long}; c", x_note=long, host=long, x_other="x"
    )
    before = asked.headers.fields
    hidden = redaction.hide(asked)
    assert ("a=[key]; b=[key]; c", "[key]", long, "x") == tuple(asked.headers[name] for name in ("cookie", "x-note", "host", "x-other"))
    assert (long, f"{long}2") == hidden.secrets
    assert before == redaction.show(asked.copy(), hidden).headers.fields
    asked.headers["more"] = "1"
    assert {"cookie", "x-note"} < {name for name, value in redaction.show(asked, hidden).headers.items() if long in value}
    short = request(authorization="Bearer localhost", x_note="localhost")
    redaction.hide(short)
    assert "localhost" == short.headers["x-note"]


def test_a_key_in_the_query() -> None:
    """A key in the query is masked, and the rest of the query is unchanged."""
    asked = request(f"/v1/x?a=%20b&Api%2Dkey={KEY}&api-key=&c")
    hidden = redaction.hide(asked)
    assert "/v1/x?a=%20b&Api%2Dkey=[key]&api-key=&c" == asked.path
    assert f"/v1/x?a=%20b&Api%2Dkey={KEY}&api-key=&c" == redaction.show(asked, hidden).path


def test_on_the_wire() -> None:
    """The request on the wire is a copy with the keys and without the body; the original keeps its masks."""
    asked = request(f"/v1/x?api-key={KEY}", authorization=f"Bearer {KEY}", accept="*/*")
    plain = asked.copy()
    plain.raw_content = None
    hidden = redaction.hide(asked)
    masked = asked.copy()
    wire = redaction.with_secrets(asked, hidden)
    assert plain.get_state() == wire.get_state()
    assert masked.get_state() == asked.get_state()
    assert "*/*" == wire.headers["accept"]


def test_nothing_to_hide() -> None:
    """Without keys the same headers are returned."""
    asked = request("/v1/x?a=b")
    fields = asked.headers.fields
    assert Hidden() == redaction.hide(asked)
    assert asked.headers.fields is fields


def test_hiding_twice_hides_nothing_more() -> None:
    """Hiding a masked request again finds no keys."""
    asked = request("/v1/x?api-key=k", authorization=f"Bearer {KEY}")
    redaction.hide(asked)
    assert Hidden() == redaction.hide(asked)


def test_a_changed_header_is_not_restored() -> None:
    """A changed header is not restored: a user may set another key for a paused request in mitmweb."""
    asked = request("/v1/x?api-key=k", api_key=KEY)
    hidden = redaction.hide(asked)
    asked.headers["api-key"], asked.path = "mine", "/other"
    redaction.show(asked, hidden)
    assert ("mine", "/other") == (asked.headers["api-key"], asked.path)


def test_masks_are_taken_out() -> None:
    """Masks are removed from a saved request, and other headers stay."""
    asked = request("/v1/x?a=b&api-key=[key]", authorization="Bearer [key]", accept="*/*")
    redaction.without_masks(asked)
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
    """A created secret is masked in responses of every shape; an invalid response is not kept."""
    assert kept == redaction.minted(answer)


SECRET = "a-key/with+all=0123456789"


def answer(headers: dict[str, str], reason: str = "OK") -> http.Response:
    made = http.Response.make(200, b"", http.Headers([(name.encode(), value.encode()) for name, value in headers.items()]))
    made.reason = reason
    return made


@pytest.mark.parametrize(
    "form", [SECRET, quote(SECRET, safe=""), quote(SECRET).lower(), base64.b64encode(f":{SECRET}".encode()).decode()], ids=range(4)
)
def test_a_key_in_the_head_of_an_answer(form: str) -> None:
    """A key is masked in a header's value and in the reason, in every encoding."""
    made = answer({"x-one": "1", "location": f"https://x/?k={form}&a=b"}, f"no {form}")
    redaction.mask_response_head(made, ["dummy", SECRET])
    assert "1" == made.headers["x-one"]
    assert "[key]" in made.headers["location"]
    assert "[key]" in made.reason
    assert form[4:-4] not in str(made.headers) + made.reason


def test_a_key_in_the_name_of_a_header() -> None:
    """A header whose name contains the key has a valid name after masking."""
    made = answer({f"x-{KEY}": "1"})
    redaction.mask_response_head(made, [KEY])
    assert ["x-key"] == [name for name in made.headers if name != "content-length"]


@pytest.mark.parametrize("secrets", [[], ["json"], ["application/json"], [SECRET]], ids=["none", "short", "a content type", "not repeated"])
def test_other_text_is_not_masked(secrets: list[str]) -> None:
    """Nothing is masked without a key, with one as short as a word, or in headers that frame the body."""
    made = answer({"content-type": "application/json", "x-more": "a json"}, "json")
    before = made.headers.fields
    redaction.mask_response_head(made, secrets)
    assert before == made.headers.fields
    assert "json" == made.reason
    made.headers["x-more"] = "as application/json"
    redaction.mask_response_head(made, secrets)
    assert "application/json" == made.headers["content-type"]


@given(before=st.binary(max_size=8), after=st.binary(max_size=8), secret=st.text("abc/+=-_09", min_size=12, max_size=90))
def test_base64_is_recognised_at_every_offset(before: bytes, after: bytes, secret: str) -> None:
    """A key inside longer base64 is masked, except for characters that it shares with its neighbours."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        masked = redaction.mask(encode(before + secret.encode() + after).decode(), [secret])
        assert "[key]" in masked
        assert len(masked) <= len(encode(before)) + len("[key]") + len(encode(after)) + 4


@pytest.mark.parametrize("form", ["abcdefgh/12345678", "abcdefgh%2F12345678", base64.b64encode(b"abcdefgh/12345678").decode(), "other", ""])
def test_a_text_that_repeats_a_key(form: str) -> None:
    """It is one that `mask` would change."""
    text, secrets = f"id-{form}", ("abcdefgh/12345678",)
    assert (redaction.mask(text, secrets) != text) is redaction.repeats(text, secrets)
    assert not redaction.repeats(text, ())


def test_the_keys_of_a_request() -> None:
    """The hidden keys of a request are returned without their schemes."""
    hidden = redaction.hide(
        request(authorization=f"Bearer {KEY}", api_key="other", sec_websocket_protocol=f"openai-insecure-api-key.{KEY}, x")
    )
    assert (KEY, "other") == hidden.secrets


def test_the_keys_of_a_query() -> None:
    """Keys in the query are returned decoded; a value as short as a word of a response is left out."""
    asked = request()
    asked.path = "/v1/files?token=secret%2Bkey&a=longer-value&key=short"
    assert ("secret+key",) == redaction.hide(asked).secrets


def test_a_path_for_a_record() -> None:
    """A long secret is masked in any spelling; a short one may be a word of the path."""
    assert "/v1/files/[key]" == redaction.mask_path("/v1/files/%61-key-of-a-client", ("a-key-of-a-client", "files"))
    assert "/v1/files/%61" == redaction.mask_path("/v1/files/%61", ("a-key-of-a-client", "files"))
