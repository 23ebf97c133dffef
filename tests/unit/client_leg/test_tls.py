"""A client decrypts exactly the bytes that were encrypted for it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING
from unittest.mock import Mock, create_autospec

import pytest
from OpenSSL import SSL

from azure_openai_proxy.client_leg import tls
from azure_openai_proxy.client_leg.tls import encrypted
from azure_simulator import tls as certificates

if TYPE_CHECKING:
    from pathlib import Path


class Connected:
    """A client of Python's `ssl` whose handshake with an OpenSSL object as mitmproxy's is complete."""

    def __init__(self, folder: Path) -> None:
        certificates.make(folder, ["127.0.0.1"])
        own = SSL.Context(SSL.TLS_SERVER_METHOD)
        own.use_certificate_chain_file(str(folder / "server.pem"))
        own.use_privatekey_file(str(folder / "server.pem"))
        self.tls = SSL.Connection(own)
        self.tls.set_accept_state()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.client = context.wrap_bio(self.incoming, self.outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()
        self.tls.bio_write(self.outgoing.read())
        with pytest.raises(SSL.WantReadError):
            self.tls.do_handshake()
        self.incoming.write(self.tls.bio_read(1 << 16))
        self.client.do_handshake()
        self.tls.bio_write(self.outgoing.read())
        self.tls.do_handshake()

    def read(self, sealed: bytes) -> bytes:
        self.incoming.write(sealed)
        data = b""
        while self.incoming.pending or self.client.pending():
            data += self.client.read()
        return data


@pytest.fixture
def connected(tmp_path: Path) -> Connected:
    return Connected(tmp_path)


@pytest.mark.parametrize("size", [1, 1 << 14, 100_000, 1_000_000])
def test_encrypted(connected: Connected, size: int) -> None:
    """All of the data is in the returned bytes, whatever its size is."""
    data = b"x" * size
    assert data == connected.read(encrypted(connected.tls, data))


def test_a_last_read_that_is_full(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only another read shows that nothing is left."""
    connected.read(encrypted(connected.tls, b"abc"))  # with session tickets
    sealed = encrypted(connected.tls, b"def")
    monkeypatch.setattr(tls, "_MOST", len(sealed))
    assert b"defghi" == connected.read(sealed + encrypted(connected.tls, b"ghi"))


def test_a_client_that_has_closed() -> None:
    """Nothing is sent to it, and nothing fails."""
    closed = create_autospec(SSL.Connection, instance=True, sendall=Mock(side_effect=SSL.ZeroReturnError))
    assert b"" == encrypted(closed, b"abc")
