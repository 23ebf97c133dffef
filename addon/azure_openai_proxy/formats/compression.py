"""Incremental decompression of bodies and streams, with a limit for the output of each input.

br and zstd use libraries that mitmproxy itself depends on. They are imported when a response needs them.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mitmproxy import http

__all__ = ["BrokenError", "TooLargeError", "content", "content_or_nothing", "decompressor", "known", "most"]

MOST_AT_ONCE = 8 << 20
"""Maximum size in bytes of one decompressed piece of a stream; a piece is 64 kB. Text compresses to a twentieth of its size, a
decompression bomb to a thousandth or less.
"""
SMALLEST_LIMIT = 16 << 20
"""The lowest limit in bytes for a whole body: a small body may consist of one repeated text."""
LARGEST = 256 << 20
"""Maximum size in bytes of a decompressed body."""
_STEP = 256 << 10  # bytes of output per call of a library


class BrokenError(ValueError):
    """The bytes do not match their content-encoding, or are truncated."""


class TooLargeError(BrokenError):
    """The decompressed data exceeds its limit."""


class Decompressor(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the same as `feed`, in pieces of a few megabytes at most and without a limit for their sum."""
        ...

    def feed(self, data: bytes, most: int = MOST_AT_ONCE) -> bytes:
        """Return the bytes that `data` adds to the decompressed stream; often none.

        Raises:
            BrokenError: `data` is not valid.
            TooLargeError: more than `most` bytes.
        """
        ...

    def end(self) -> None:
        """Check that the stream is complete.

        Raises:
            BrokenError: it is truncated.
        """
        ...


class _Engine(Protocol):
    """The decompressor of one compressed member."""

    eof: bool
    unused: bytes
    """Input after the end of the member."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed `data`, in pieces of a few megabytes at most. Raises the library's own errors."""
        ...


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._engine = zlib.decompressobj(bits)
        self.eof = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            out = self._engine.decompress(data, _STEP)
            data = self._engine.unconsumed_tail
            yield out
            if self._engine.eof or (not data and len(out) < _STEP):
                break
        self.eof, self.unused = self._engine.eof, self._engine.unused_data


class _Zstd:
    """Python's own module, or its backport for an older Python."""

    def __init__(self, made: Any) -> None:
        self._engine = made
        self.eof = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            yield self._engine.decompress(data, _STEP)
            data = b""
            if self._engine.eof or self._engine.needs_input:
                break
        self.eof, self.unused = self._engine.eof, self._engine.unused_data


class _Zstandard:
    """The package zstandard. It has no output limit, so it is fed in slices: four bytes may become 128 kB."""

    SLICE = 64

    def __init__(self, made: Any) -> None:
        self._engine = made
        self.eof = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self.SLICE):
            yield self._engine.decompress(data[start : start + self.SLICE])
            if self._engine.eof:
                self.eof, self.unused = True, self._engine.unused_data + data[start + self.SLICE :]
                break


class _Brotli:
    """There is only one member. Older versions of brotli have no output limit and are fed in slices: a few bytes may become 16 MB."""

    SLICE = 16
    LIMITED = True

    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - few responses use it

        self._engine: Any = brotli.Decompressor()
        self.eof = False  # stays False: data after the end is an error
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if not (self.LIMITED and hasattr(self._engine, "can_accept_more_data")):
            for start in range(0, len(data), self.SLICE):
                yield self._engine.process(data[start : start + self.SLICE])
            return
        while True:
            out = self._engine.process(data, output_buffer_limit=_STEP)
            data = b""
            yield out
            if self._engine.is_finished() or (len(out) < _STEP and self._engine.can_accept_more_data()):
                return

    @property
    def finished(self) -> bool:
        return bool(self._engine.is_finished())


class _Members:
    """A sequence of compressed members, which gzip and zstd allow."""

    def __init__(self, start: Callable[[], _Engine]) -> None:
        self._start = start
        self._engine: _Engine | None = None

    def feed(self, data: bytes, most: int = MOST_AT_ONCE) -> bytes:
        out: list[bytes] = []
        size = 0
        for piece in self.pieces(data):
            out.append(piece)
            size += len(piece)
            if size > most:
                raise TooLargeError(f"{len(data):,} bytes decompress to more than {most:,}")
        return b"".join(out)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._engine is None:
                self._engine = self._start()
            try:
                yield from self._engine.pieces(data)
            except Exception as error:  # zlib.error, zstandard.ZstdError, brotli.error
                raise BrokenError(str(error)) from error
            data = b""
            if self._engine.eof:
                data = self._engine.unused
                self._engine = None

    def end(self) -> None:
        if self._engine is not None and not getattr(self._engine, "finished", False):
            raise BrokenError("it ends too early")


class _Deflate:
    """The zlib format of the standard, or the raw deflate format that some servers send. The first two bytes distinguish them."""

    def __init__(self) -> None:
        self._head = b""
        self._members: _Members | None = None

    def feed(self, data: bytes, most: int = MOST_AT_ONCE) -> bytes:
        data = self._with_format(data)
        return self._members.feed(data, most) if self._members else b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        data = self._with_format(data)
        return self._members.pieces(data) if self._members else iter(())

    def _with_format(self, data: bytes) -> bytes:
        """Create `_members` once two bytes have arrived. Return the input for it."""
        if self._members is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            data = self._head
            wrapped = data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2]) % 31 == 0
            bits = zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
            self._members = _Members(lambda: _Zlib(bits))
        return data

    def end(self) -> None:
        if self._members is not None:
            self._members.end()
        elif self._head:
            raise BrokenError("it ends too early")


def _gzip() -> Decompressor:
    return _Members(lambda: _Zlib(16 + zlib.MAX_WBITS))


def _brotli() -> Decompressor:
    return _Members(_Brotli)


_ZSTD = ("compression.zstd", "backports.zstd", "zstandard")
"""Python's own module from 3.14 on; mitmproxy's dependency from 12.3 on; its dependency before."""


def _zstd_engine(made: Any) -> _Engine:
    return _Zstandard(made().decompressobj()) if hasattr(made, "decompressobj") else _Zstd(made())


def _zstd() -> Decompressor:
    for name in _ZSTD:
        with suppress(ImportError):
            return _Members(partial(_zstd_engine, import_module(name).ZstdDecompressor))
    raise ImportError(" or ".join(_ZSTD))  # pragma: no cover - mitmproxy needs one of them too


_KNOWN: dict[str, Callable[[], Decompressor]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _Deflate,
    "br": _brotli,
    "zstd": _zstd,
}


def known(encoding: str | None) -> bool:
    """Return whether this content-encoding is supported."""
    return _name(encoding) in _KNOWN


def decompressor(encoding: str | None) -> Decompressor | None:
    """Return a decompressor; None without an encoding, or for an unsupported one."""
    make = _KNOWN.get(_name(encoding))
    return make() if make else None


def most(size: int) -> int:
    """Return the limit in bytes for the decompressed size of a body of `size` bytes. Text compresses to a twentieth of its size."""
    return min(LARGEST, max(SMALLEST_LIMIT, 64 * size))


def content(message: http.Message) -> bytes:
    """Return a body without its content-encoding, like `message.get_content(strict=False)`: an invalid body is returned unchanged.

    Raises:
        TooLargeError: the decompressed body exceeds its limit.
    """
    body = message.raw_content or b""
    engine = decompressor(message.headers.get("content-encoding")) if body else None
    if engine is None:
        return body
    try:
        return engine.feed(body, most(len(body)))
    except TooLargeError:
        raise
    except BrokenError:
        return body


def content_or_nothing(message: http.Message) -> bytes:
    """Return `content(message)`, or b"" if the decompressed body exceeds its limit."""
    try:
        return content(message)
    except TooLargeError:
        return b""


def _name(encoding: str | None) -> str:
    return (encoding or "").strip().lower()
