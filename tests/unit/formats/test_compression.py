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


def br(data: bytes) -> bytes:
    return bytes(brotli.compress(data, quality=1))  # the best quality takes a second for a bomb


def zstd(data: bytes) -> bytes:
    """Compress with the library that this mitmproxy depends on."""
    encoded = encodings.encode(data, "zstd")
    assert isinstance(encoded, bytes)
    return encoded


COMPRESS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("X-GZIP ", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("br", br),
    ("zstd", zstd),
]


@pytest.mark.parametrize("encoding, compress", COMPRESS)
@given(size=st.integers(1, 100))
def test_any_chunking_gives_the_text(encoding: str, compress: Callable[[bytes], bytes], size: int) -> None:
    """Every encoding is decompressed in chunks of any size, and its end is recognised."""
    data = compress(TEXT)
    engine = decompressor(encoding)
    assert engine
    assert TEXT == b"".join(engine.feed(data[start : start + size]) for start in range(0, len(data), size))
    engine.end()


@pytest.mark.parametrize("encoding, compress", COMPRESS)
def test_cut_short(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """A truncated stream raises an error at its end."""
    engine = decompressor(encoding)
    assert engine
    engine.feed(compress(TEXT)[:-5])
    with pytest.raises(BrokenError):
        engine.end()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_not_compressed_at_all(encoding: str) -> None:
    """Invalid data raises the same error, whichever library detects it."""
    engine = decompressor(encoding)
    assert engine
    with pytest.raises(BrokenError):
        engine.feed(b"data: \xff\xff\xff plainly not compressed, whatever the headers say")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_empty(encoding: str) -> None:
    """No data is a complete, empty stream."""
    engine = decompressor(encoding)
    assert engine
    assert b"" == engine.feed(b"")
    engine.end()


def test_one_byte_of_deflate() -> None:
    """One byte does not distinguish the two formats of deflate, and is not a complete stream."""
    engine = decompressor("deflate")
    assert engine
    assert b"" == engine.feed(b"\x78")
    with pytest.raises(BrokenError):
        engine.end()


@pytest.mark.parametrize("encoding, compress", [("gzip", gzip.compress), ("zstd", zstd)])
def test_members_one_after_the_other(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """Several members in a row are decompressed: some servers compress each event separately."""
    engine = decompressor(encoding)
    assert engine
    assert b"onetwo" == engine.feed(compress(b"one") + compress(b"two"))
    engine.end()


@pytest.mark.parametrize("encoding", [None, "", "identity", "gzip, br", "rot13"])
def test_nothing_to_undo(encoding: str | None) -> None:
    """There is no decompressor without an encoding, or for an unknown one."""
    assert decompressor(encoding) is None
    assert not known(encoding)


def test_known() -> None:
    """Names of encodings are compared as in HTTP: without case and surrounding space."""
    assert known(" GZIP")


# Decompression bombs


@pytest.mark.parametrize("encoding, compress", COMPRESS)
def test_a_bomb_is_not_decompressed(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """Data that exceeds the limit raises an error, and no more output than the limit is held."""
    bomb = compress(bytes(4 * MOST_AT_ONCE))
    engine = decompressor(encoding)
    assert engine
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match=f"decompress to more than {MOST_AT_ONCE:,}"):
            engine.feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 6 * MOST_AT_ONCE  # older versions of brotli return 16 MB at once
    finally:
        tracemalloc.stop()
    made = http.Response.make(200)
    made.headers["content-encoding"] = encoding
    made.raw_content = bomb
    with pytest.raises(TooLargeError):
        compression.content(made)
    assert b"" == compression.content_or_nothing(made)


@pytest.mark.parametrize("encoding, compress", COMPRESS)
def test_output_of_exactly_the_limit(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    """Output of exactly the limit is returned, from one feed or several; each feed has a limit of its own."""
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
    """Libraries without an output limit give the same output, also for several members."""
    monkeypatch.setattr(compression._Brotli, "LIMITED", limited)
    text = random.Random(1).randbytes(1000) * 600
    data = compress(text)
    engine = decompressor(encoding)
    assert engine
    assert text == engine.feed(data)
    engine.end()


class FakeZstandard:
    """A replacement for the package zstandard: a byte becomes 1024 bytes, `.` ends a member."""

    eof = False
    unused_data = b""

    def decompress(self, data: bytes) -> bytes:
        assert not self.eof
        self.eof = b"." in data
        text, _, self.unused_data = data.partition(b".")
        return text * 1000


class FakeZstd:
    """A replacement for compression.zstd: the same output in small pieces."""

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
    """Both zstd libraries decompress several members in slices of any size, up to the limit."""
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
    """A body that is not compressed is returned unchanged, whatever its header says."""
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
