"""Decompression of request bodies, its limits and its errors."""

from __future__ import annotations

import asyncio
import functools
import gzip
import zlib
from typing import TYPE_CHECKING

import pytest
from mitmproxy import http

from azure_openai_proxy.api import request_compression
from azure_openai_proxy.errors import ProxyError
from unit.formats.test_compression import br, zstd

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b'{"model":"gpt-4o","input":"' + b"hello " * 1000 + b'"}'
LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    " GZip ": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": br,
    "zstd": zstd,
    "gzip, zstd": lambda data: zstd(gzip.compress(data)),
    "identity": bytes,
    "identity, br, ": br,
}


@functools.cache
def bomb(coding: str) -> bytes:
    """A body of 64 times the limit; compressing it takes a tenth of a second."""
    return CODINGS[coding](bytes(64 * LIMIT))


def request(coding: str, body: bytes) -> http.Request:
    asked = http.Request.make("POST", "http://localhost/v1/responses", body)
    asked.headers.update({"content-encoding": coding, "content-length": str(len(body))})
    return asked


def decode(asked: http.Request, limit: int = LIMIT) -> None:
    asyncio.run(request_compression.decode(asked, limit))


@pytest.mark.parametrize(("coding", "compress"), CODINGS.items())
def test_a_body_is_decompressed(coding: str, compress: Callable[[bytes], bytes]) -> None:
    """After decompression the header is removed and the length is correct, for every coding."""
    asked = request(coding, compress(BODY))
    decode(asked)
    assert (BODY, None, str(len(BODY))) == (asked.raw_content, asked.headers.get("content-encoding"), asked.headers["content-length"])


def test_a_chunked_body_gets_no_length() -> None:
    """A chunked body gets no content-length."""
    asked = request("gzip", gzip.compress(BODY))
    del asked.headers["content-length"]
    decode(asked)
    assert (BODY, None) == (asked.raw_content, asked.headers.get("content-length"))


def test_an_empty_body_stays_empty() -> None:
    """An empty body with a coding stays empty."""
    asked = request("gzip", b"")
    decode(asked)
    assert b"" == asked.raw_content


REFUSED = {
    "unknown": ("compress", BODY, 415),
    "unknown among others": ("gzip, exi", BODY, 415),
    "too many": (", ".join(["gzip"] * 5), BODY, 415),
    "no gzip": ("gzip", BODY, 400),
    "cut": ("zstd", zstd(BODY)[:-5], 400),
    "cut br": ("br", br(BODY)[:-5], 400),
    "one byte": ("deflate", b"x", 400),
}


@pytest.mark.parametrize(("coding", "body", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_a_body_that_is_refused(coding: str, body: bytes, status: int) -> None:
    """Unknown codings, invalid data and output over the limit are refused."""
    with pytest.raises(ProxyError) as refused:
        decode(request(coding, body))
    assert status == refused.value.status


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_is_refused(coding: str) -> None:
    """A small body that is decompressed to more than the limit is refused."""
    with pytest.raises(ProxyError) as refused:
        decode(request(coding, bomb(coding)))
    assert 413 == refused.value.status


def test_a_bomb_in_a_bomb_is_refused() -> None:
    """The limit holds for each of several codings."""
    with pytest.raises(ProxyError) as refused:
        decode(request("gzip, gzip", gzip.compress(bomb("gzip"))))
    assert 413 == refused.value.status


def test_the_limit_itself_passes() -> None:
    """Output of exactly the limit is accepted, and one byte more is refused."""
    decode(request("gzip", gzip.compress(BODY)), len(BODY))
    with pytest.raises(ProxyError):
        decode(request("gzip", gzip.compress(BODY)), len(BODY) - 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_others_are_served_meanwhile(coding: str) -> None:
    """One step produces a few MB at most, for a body of any size."""
    steps = request_compression.decoded(bomb(coding), coding, 64 * LIMIT)
    assert 16 <= sum(1 for _ in steps)


def test_a_long_body_yields() -> None:
    """Other tasks run during the decompression of a long body."""
    asked = request("gzip", gzip.compress(bytes(8 * LIMIT)))
    turns = 0

    async def count() -> None:
        nonlocal turns
        work = asyncio.ensure_future(request_compression.decode(asked, 8 * LIMIT))
        while not work.done():
            turns += 1
            await asyncio.sleep(0)
        await work

    asyncio.run(count())
    assert turns >= 4
    assert 8 * LIMIT == len(asked.raw_content or b"")
