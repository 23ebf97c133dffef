"""Incremental decompression, for a stream must be readable as it comes.

br and zstd come from the libraries that mitmproxy itself depends on; they are imported when an answer needs them.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrokenError", "Decompressor", "decompressor", "known"]


class BrokenError(ValueError):
    """The bytes are not what content-encoding says, or end too early."""


class Decompressor(Protocol):
    def feed(self, data: bytes) -> bytes:
        """What `data` adds to the decompressed stream, often nothing. Raises BrokenError."""
        ...

    def end(self) -> None:
        """Raises BrokenError if the compressed stream is not whole."""
        ...


class _Engine(Protocol):
    """As zlib's decompression objects are, and zstandard's."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Members:
    """One compressed member after the other, as gzip and zstd allow."""

    def __init__(self, start: Callable[[], _Engine]) -> None:
        self._start = start
        self._engine: _Engine | None = None

    def feed(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._engine is None:
                self._engine = self._start()
            try:
                out.append(self._engine.decompress(data))
            except Exception as error:  # zlib.error, zstandard.ZstdError
                raise BrokenError(str(error)) from error
            data = b""
            if self._engine.eof:
                data = self._engine.unused_data
                self._engine = None
        return b"".join(out)

    def end(self) -> None:
        if self._engine is not None:
            raise BrokenError("it ends too early")


class _Deflate:
    """zlib's format as the standard has it, or the bare one that some servers send: the first two bytes tell."""

    def __init__(self) -> None:
        self._head = b""
        self._members: _Members | None = None

    def feed(self, data: bytes) -> bytes:
        if self._members is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            data = self._head
            wrapped = data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2]) % 31 == 0
            bits = zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
            self._members = _Members(lambda: zlib.decompressobj(bits))
        return self._members.feed(data)

    def end(self) -> None:
        if self._members is not None:
            self._members.end()
        elif self._head:
            raise BrokenError("it ends too early")


class _Brotli:
    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - few answers are compressed with it

        self._engine = brotli.Decompressor()
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        self._begun = self._begun or bool(data)
        try:
            return bytes(self._engine.process(data))
        except Exception as error:  # brotli.error
            raise BrokenError(str(error)) from error

    def end(self) -> None:
        if self._begun and not self._engine.is_finished():
            raise BrokenError("it ends too early")


def _gzip() -> Decompressor:
    return _Members(lambda: zlib.decompressobj(16 + zlib.MAX_WBITS))


_ZSTD = ("compression.zstd", "backports.zstd", "zstandard")
"""Python's own from 3.14 on, what mitmproxy brings from 12.3 on, and what it brought before."""


def _zstd() -> Decompressor:
    for name in _ZSTD:
        with suppress(ImportError):
            made: Any = import_module(name).ZstdDecompressor
            return _Members(getattr(made(), "decompressobj", made))
    raise ImportError(" or ".join(_ZSTD))  # pragma: no cover - mitmproxy needs one too


_KNOWN: dict[str, Callable[[], Decompressor]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _zstd,
}


def known(encoding: str | None) -> bool:
    """Whether a body with this content-encoding can be read."""
    return _name(encoding) in _KNOWN


def decompressor(encoding: str | None) -> Decompressor | None:
    """None where there is nothing to undo, or no way to."""
    make = _KNOWN.get(_name(encoding))
    return make() if make else None


def _name(encoding: str | None) -> str:
    return (encoding or "").strip().lower()
