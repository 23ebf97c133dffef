"""Parts of HTTP/1 request heads, ordinary and malformed, for generated tests."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["LINES", "NAMES", "VALUES"]

NAMES = st.sampled_from(["Host", "Accept", "content-length", "Content-Length", "Transfer-Encoding", "X y", "", "é", "Connection"])
VALUES = st.sampled_from(["localhost", "0", "2", "02", "+2", "a b", " 2 ", "\t", "", "chunked", "a\x00b", "a\nb", "ö", "9" * 16, "a\x0bb"])
LINES = st.sampled_from(
    [
        "POST /v1/chat/completions HTTP/1.1",
        "GET /a?b=c HTTP/1.1",
        "GET /ä HTTP/1.1",
        "CONNECT /a HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "GET http://a/b HTTP/1.1",
        "GET  /a HTTP/1.1",
        "GET /a HTTP/1.0",
        "G{T /a HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "",
    ]
)
