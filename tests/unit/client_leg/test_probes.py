"""Bytes that are sent to find out whether a client has disconnected."""

from __future__ import annotations

import pytest
from mitmproxy import http

from azure_openai_proxy.client_leg.probes import CONTINUE, START, Probes

REQUEST = http.Request.make("POST", "http://localhost/")
OLD = REQUEST.copy()
OLD.http_version = "HTTP/1.0"


@pytest.mark.parametrize(
    "request_, response, probed",
    [
        (REQUEST, None, START),
        (REQUEST, http.Response.make(100), START),
        (REQUEST, http.Response.make(200), b""),
        (OLD, None, b""),
        (None, None, b""),
    ],
)
def test_in_an_upload(request_: http.Request | None, response: http.Response | None, probed: bytes) -> None:
    """One byte of the response at a time, as long as it has not begun; the response is sent without them."""
    probes = Probes()
    assert probed == b"".join(probes.in_upload(request_, response) for _ in range(2 * len(START)))
    assert b"HTTP/1.1 200 OK"[len(probed) :] == probes.rest_of(b"HTTP/1.1 200 OK")
    assert b"body" == probes.rest_of(b"body")


CHUNKED, WHOLE = http.Response.make(200, b"", {"transfer-encoding": "chunked"}), http.Response.make(200)


@pytest.mark.parametrize(
    "request_, response, probe",
    [(REQUEST, None, CONTINUE), (OLD, None, b""), (REQUEST, CHUNKED, b"0"), (REQUEST, WHOLE, b""), (OLD, WHOLE, b"")],
)
def test_after_a_half_close(request_: http.Request, response: http.Response | None, probe: bytes) -> None:
    """Something that a client ignores before the response or within a chunked one."""
    assert probe == Probes().after_half_close(request_, response)


def test_a_half_close_after_probes() -> None:
    """The probes were the beginning of the informational response."""
    probes = Probes()
    probes.in_upload(REQUEST, None)
    assert CONTINUE[1:] == probes.after_half_close(REQUEST, None)
    assert b"HTTP/1.1" == probes.rest_of(b"HTTP/1.1")
