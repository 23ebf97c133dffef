"""Incremental decompression."""

import gzip
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.net import encoding as encodings

from azure_openai_proxy.decompress import BrokenError, decompressor, known

TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n' * 50


def bare_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def zstd(data: bytes) -> bytes:
    """By whatever library this mitmproxy has for it."""
    encoded = encodings.encode(data, "zstd")
    assert isinstance(encoded, bytes)
    return encoded


COMPRESS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("X-GZIP ", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("br", brotli.compress),
    ("zstd", zstd),
]


@pytest.mark.parametrize("encoding, compress", COMPRESS)
@given(size=st.integers(1, 100))
def test_any_chunking_gives_the_text(encoding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    """Every encoding is undone piece by piece, and known to be whole at its end."""
    data = compress(TEXT)
    engine = decompressor(encoding)
    assert engine
    assert TEXT == b"".join(engine.feed(data[start : start + size]) for start in range(0, len(data), size))
    engine.end()


@pytest.mark.parametrize("encoding, compress", COMPRESS)
def test_cut_short(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A compressed stream that lacks its end is broken."""
    engine = decompressor(encoding)
    assert engine
    engine.feed(compress(TEXT)[:-5])
    with pytest.raises(BrokenError):
        engine.end()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_not_compressed_at_all(encoding: str) -> None:
    """Bytes that are not what content-encoding says raise one error, whichever library saw it."""
    engine = decompressor(encoding)
    assert engine
    with pytest.raises(BrokenError):
        engine.feed(b"data: \xff\xff\xff plainly not compressed, whatever the headers say")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_empty(encoding: str) -> None:
    """No bytes at all are a whole empty stream."""
    engine = decompressor(encoding)
    assert engine
    assert b"" == engine.feed(b"")
    engine.end()


def test_one_byte_of_deflate() -> None:
    """One byte does not tell which of the two formats it is, and is no whole stream."""
    engine = decompressor("deflate")
    assert engine
    assert b"" == engine.feed(b"\x78")
    with pytest.raises(BrokenError):
        engine.end()


@pytest.mark.parametrize("encoding, compress", [("gzip", gzip.compress), ("zstd", zstd)])
def test_members_one_after_the_other(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """Servers that compress each event by itself are understood."""
    engine = decompressor(encoding)
    assert engine
    assert b"onetwo" == engine.feed(compress(b"one") + compress(b"two"))
    engine.end()


@pytest.mark.parametrize("encoding", [None, "", "identity", "gzip, br", "rot13"])
def test_nothing_to_undo(encoding: str | None) -> None:
    """What is not compressed, or in a way nobody knows, has no decompressor."""
    assert decompressor(encoding) is None
    assert not known(encoding)


def test_known() -> None:
    """The names are read as HTTP reads them."""
    assert known(" GZIP")
