"""An HTTP/2 client connection: malformed requests and resets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.patched_proxy import H2, Proxy, still_works

if TYPE_CHECKING:
    import pytest


def test_bad_http2(proxy: Proxy) -> None:
    """HTTP/2 has its own way to refuse a malformed head: the connection ends with GOAWAY. What gets through to us is answered."""
    for more in ([("Upper", "x")], [("transfer-encoding", "chunked")], [("connection", "close")], [("content-length", "abc")]):
        with H2(proxy) as client:
            assert -2 == client.answer(client.open("/echo", *more, end=False))[0]
    with H2(proxy) as client:
        stream = client.open("/echo", ("content-length", "5"), end=False)
        client.body(stream, b"ab")
        assert -2 == client.answer(stream)[0]
    with H2(proxy) as client:
        assert 400 == client.answer(client.open("/echo", ("x", "a\x1bb")))[0]
        assert 400 == client.answer(client.open("/ec\x01ho"))[0]
        assert 400 == client.answer(client.open("/echo a"))[0]
        assert 400 == client.answer(client.open("/echo\ta"))[0]
        assert 200 == client.answer(client.open("/echo"))[0]
    assert still_works(proxy)


def test_an_error_of_http2_repeats_no_header(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a key, and longer than a frame: mitmproxy would log it, or fail and leave the client without an answer."""
    caplog.set_level("INFO")
    for value in ("Bearer secret ", "Bearer secret\n", "secret" * 5000 + "\n"):
        with H2(proxy) as client:
            assert -2 == client.answer(client.open("/echo", ("authorization", value)))[0]
    assert still_works(proxy)
    assert "HTTP/2 protocol error: " in caplog.text
    assert "secret" not in caplog.text
    assert "crashed" not in caplog.text


def test_a_request_that_is_reset_in_the_write_that_brings_it(proxy: Proxy) -> None:
    """It calls no hook, its received bytes are acknowledged, and the connection serves the next request."""
    with H2(proxy) as client:
        stream = client.conn.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "https"), (":path", "/echo"), (":authority", "localhost")]
        client.conn.send_headers(stream, fields)
        client.conn.send_data(stream, b"body")
        client.conn.reset_stream(stream)
        client.flush()
        assert 200 == client.answer(client.open("/echo"))[0]
    assert 1 == proxy.policy.hooks.count("requestheaders")
