"""Incremental decompression."""

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import brotli  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.net import encoding as encodings

from azure_openai_proxy.formats import compression
from azure_openai_proxy.formats.compression import MOST_AT_ONCE, BrokenError, TooLargeError, decompressor, known

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


# Bombs


@pytest.mark.parametrize("encoding, compress", COMPRESS)
def test_a_bomb_is_not_decompressed(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """Bytes that decompress to more than they may are an error, and no more than that is ever held."""
    bomb = compress(bytes(4 * MOST_AT_ONCE))
    engine = decompressor(encoding)
    assert engine
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="decompress to more than 16,777,216"):
            engine.feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST_AT_ONCE
    finally:
        tracemalloc.stop()
    made = http.Response.make(200)
    made.headers["content-encoding"] = encoding
    made.raw_content = bomb
    with pytest.raises(TooLargeError):
        compression.content(made)
    assert b"" == compression.content_or_nothing(made)


@pytest.mark.parametrize("encoding, compress", COMPRESS)
def test_what_is_as_large_as_it_may_be(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """The last byte that is allowed comes out, in one feed or over several; the next feed may have as much again."""
    whole = bytes(1 << 20)
    engine = decompressor(encoding)
    assert engine
    assert whole == engine.feed(compress(whole), len(whole))
    engine.end()
    engine = decompressor(encoding)
    assert engine
    data = compress(whole)
    with pytest.raises(TooLargeError):
        engine.feed(data, len(whole) - 1)


@pytest.mark.parametrize("encoding, compress", COMPRESS)
@pytest.mark.parametrize("limited", [True, False], ids=["limited", "in slices"])
def test_engines_with_and_without_a_limit(
    encoding: str, compress: Callable[[bytes], bytes], limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older libraries take no limit; what comes out is the same, several members too."""
    monkeypatch.setattr(compression._Brotli, "LIMITED", limited)
    text = random.Random(1).randbytes(1000) * 600
    data = compress(text)
    engine = decompressor(encoding)
    assert engine
    assert text == engine.feed(data)
    engine.end()


class FakeZstandard:
    """As the zstandard package's decompression object: a byte is a kilobyte, `.` ends a member."""

    eof = False
    unused_data = b""

    def decompress(self, data: bytes) -> bytes:
        assert not self.eof
        self.eof = b"." in data
        text, _, self.unused_data = data.partition(b".")
        return text * 1000


class FakeZstd:
    """As compression.zstd's: the same in small portions."""

    eof = needs_input = False
    unused_data = end = held = b""

    def decompress(self, data: bytes, most: int) -> bytes:
        if data:
            text, self.end, self.unused_data = data.partition(b".")
            self.held += text * 1000
        out, self.held = self.held[:1500], self.held[1500:]
        self.eof = bool(self.end) and not self.held
        self.needs_input = not self.held
        return out


@pytest.mark.parametrize("limited", [True, False], ids=["with a limit", "without"])
def test_both_libraries_for_zstd(limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members one after the other, whatever slices they are fed in, and no more than may be."""
    made = type("ZstdDecompressor", (FakeZstd,), {}) if limited else type("", (), {"decompressobj": lambda _: FakeZstandard()})
    monkeypatch.setattr(compression, "import_module", lambda _: SimpleNamespace(ZstdDecompressor=made))
    engine = decompressor("zstd")
    assert engine
    text = b"x" * 100
    assert text * 1000 == engine.feed(text)
    with pytest.raises(TooLargeError):
        engine.feed(text, 50_000)
    engine = decompressor("zstd")
    assert engine
    assert b"x" * 200_000 + b"y" * 1000 == engine.feed(text + b"." + text + b".y.")
    engine.end()


def test_a_body_that_is_not_compressed_stays() -> None:
    """As it came, whatever its header says, with a text that looks compressed or none at all."""
    made = http.Response.make(200, b"plain", {"content-encoding": "identity"})
    assert b"plain" == compression.content(made)
    made.headers["content-encoding"] = "gzip"
    made.raw_content = b"plain"
    assert b"plain" == compression.content(made)
    made.raw_content = None
    assert b"" == compression.content(made)
    made.content = TEXT
    assert TEXT == compression.content(made) == compression.content_or_nothing(made)
    assert len(made.data.content or b"") < len(TEXT)
