"""TLS of a client's connection, with mitmproxy's OpenSSL object."""

from __future__ import annotations

from OpenSSL import SSL

__all__ = ["encrypted"]

_MOST = 1 << 16
"""Bytes of a read."""


def encrypted(tls: SSL.Connection, data: bytes) -> bytes:
    """Encrypt `data`. Return all bytes to send to the client, none if it has closed TLS.

    mitmproxy reads until OpenSSL raises that nothing is left, which takes half as long as encrypting a small part of a body. A read of
    fewer bytes than requested has left nothing.
    """
    try:
        tls.sendall(data)
    except (SSL.ZeroReturnError, SSL.SysCallError):  # as in mitmproxy: the client may still be sending, which is discarded
        return b""
    out = b""
    try:
        while len(piece := tls.bio_read(_MOST)) == _MOST:
            out += piece
    except SSL.WantReadError:
        return out
    return out + piece if out else piece
