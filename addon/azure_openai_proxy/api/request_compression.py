"""Decompression of request bodies before their translation. Azure accepts no compressed requests.

The work is done in slices, with other tasks between them. `azure_openai_max_body` limits the decompressed size.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from azure_openai_proxy.errors import BadRequest, Failed
from azure_openai_proxy.formats import compression

if TYPE_CHECKING:
    from collections.abc import Generator

    from mitmproxy import http

__all__ = ["HEADER", "decode"]

HEADER = "content-encoding"
MOST_CODINGS = 4
SLICE = 16 << 10
"""Compressed bytes that are read at a time."""
STEPS = 8
"""Number of slices, or of 256 kB pieces of their output, after which other tasks run."""


async def decode(request: http.Request, limit: int) -> None:
    """Decompress the body of `request` in place, and remove the header.

    Raises:
        ProxyError: the decompressed body is larger than `limit` bytes, is invalid, or has an unsupported coding.
    """
    codings = [coding.strip().lower() for coding in request.headers.get(HEADER, "").split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    unknown = [coding for coding in codings if not compression.known(coding)]
    if unknown or len(codings) > MOST_CODINGS:
        what = f"The content coding {unknown[0][:40]!a} is not supported" if unknown else f"There are {len(codings)} content codings"
        raise Failed(
            415, "unsupported_content_encoding", f"{what}: send the body without content-encoding, or as gzip, deflate, br or zstd."
        )
    content = request.raw_content or b""
    for coding in reversed(codings if content else []):
        steps = decoded(content, coding, limit)
        count = 0
        while True:
            try:
                next(steps)
            except StopIteration as end:
                content = end.value
                break
            except compression.TooLargeError:
                raise Failed(
                    413, "request_too_large", f"The request's body is larger than {limit} bytes when it is decompressed."
                ) from None
            except compression.BrokenError:
                raise BadRequest(f"The request's compressed body is not valid {coding}, which its content-encoding names.") from None
            count += 1
            if count % STEPS == 0:
                await asyncio.sleep(0)
    request.headers.pop(HEADER, None)
    if codings:
        request.raw_content = content
        if "content-length" in request.headers:
            request.headers["content-length"] = str(len(content))


def decoded(content: bytes, coding: str, limit: int) -> Generator[None, None, bytes]:
    """Remove one coding from `content`. Each step of the generator does a little work; its value is the result."""
    engine = compression.decompressor(coding)
    assert engine, "only known codings are decoded"
    out: list[bytes] = []
    size = 0
    for start in range(0, len(content), SLICE):
        for piece in engine.pieces(content[start : start + SLICE]):
            out.append(piece)
            size += len(piece)
            if size > limit:
                raise compression.TooLargeError
            yield
    engine.end()
    return b"".join(out)
