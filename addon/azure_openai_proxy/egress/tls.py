"""TLS to upstream, with Python's `ssl` and memory BIOs: the only public interface that can resume a session.

Contexts follow mitmproxy's options for upstream (`ssl_insecure`, `ssl_verify_upstream_trusted_*`, `client_certs`,
`tls_version_server_*`, `ciphers_server`, `tls_ecdh_curve_server`) and SSLKEYLOGFILE.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import certifi

from azure_openai_proxy.formats.paths import expanded

if TYPE_CHECKING:
    from pathlib import Path

    from mitmproxy.options import Options

__all__ = ["Tls", "TlsOptions", "context", "reason", "refuses_client"]

_MOST = 1 << 14
"""Maximum bytes of a TLS record, and so of each read."""

_VERSIONS = {
    "SSL3": ssl.TLSVersion.SSLv3,
    "TLS1": ssl.TLSVersion.TLSv1,
    "TLS1_1": ssl.TLSVersion.TLSv1_1,
    "TLS1_2": ssl.TLSVersion.TLSv1_2,
    "TLS1_3": ssl.TLSVersion.TLSv1_3,
}
_CURVES = {"secp256r1": "prime256v1", "secp192r1": "prime192v1"}
"""Curves for which OpenSSL uses another name."""
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")
"""Parts of the names of alerts that reject the client's certificate, or its absence."""


class TlsOptions(NamedTuple):
    """mitmproxy's options for TLS to upstream."""

    insecure: bool = False
    ca_file: str | None = None
    ca_folder: str | None = None
    client_certs: str | None = None
    minimum: str = "TLS1_2"
    maximum: str = "UNBOUNDED"
    ciphers: str | None = None
    curve: str | None = None

    @classmethod
    def of(cls, options: Options) -> TlsOptions:
        return cls(
            insecure=options.ssl_insecure,
            ca_file=options.ssl_verify_upstream_trusted_ca,
            ca_folder=options.ssl_verify_upstream_trusted_confdir,
            client_certs=options.client_certs,
            minimum=options.tls_version_server_min,
            maximum=options.tls_version_server_max,
            ciphers=options.ciphers_server,
            curve=options.tls_ecdh_curve_server,
        )


def context(options: TlsOptions, host: str) -> ssl.SSLContext:
    """The TLS context for a host, with its client certificate if one is configured.

    Raises:
        OSError: a certificate file cannot be read, or OpenSSL rejects a cipher or curve (`ssl.SSLError`).
    """
    return _context(options, _client_certificate(options.client_certs, host))


@lru_cache(64)
def _context(options: TlsOptions, certificate: Path | None) -> ssl.SSLContext:
    """Cached, since reading the trusted certificates takes 20 ms."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = _VERSIONS.get(options.minimum, ssl.TLSVersion.MINIMUM_SUPPORTED)
    made.maximum_version = _VERSIONS.get(options.maximum, ssl.TLSVersion.MAXIMUM_SUPPORTED)
    made.options |= ssl.OP_NO_RENEGOTIATION  # with renegotiation, a write could have to wait for a read
    if options.insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        made.options |= ssl.OP_LEGACY_SERVER_CONNECT
    else:
        own = options.ca_file or options.ca_folder
        made.load_verify_locations(options.ca_file if own else certifi.where(), options.ca_folder)
    if options.ciphers:
        made.set_ciphers(options.ciphers)
    elif made.minimum_version < ssl.TLSVersion.TLSv1_2:
        made.set_ciphers("DEFAULT:@SECLEVEL=0")
    if options.curve:
        _set_curve(made, options.curve)
    if certificate:
        made.load_cert_chain(certificate)
        made.post_handshake_auth = True
    made.set_alpn_protocols(["http/1.1"])
    if key_log := os.environ.get("MITMPROXY_SSLKEYLOGFILE") or os.environ.get("SSLKEYLOGFILE"):
        made.keylog_filename = key_log
    return made


def _set_curve(made: ssl.SSLContext, name: str) -> None:
    try:
        made.set_ecdh_curve(_CURVES.get(name.lower(), name))
    except ValueError as error:
        raise ssl.SSLError(str(error)) from error


def _client_certificate(configured: str | None, host: str) -> Path | None:
    """The configured file, or `HOST.pem` in the configured directory."""
    if not configured:
        return None
    path = expanded(configured)
    if not path.is_dir():
        return path
    own = path / f"{host}.pem"
    return own if own.is_file() else None


def refuses_client(error: ssl.SSLError) -> bool:
    """Whether the peer rejected the client certificate, or its absence. With TLS 1.3 this error arrives after the client's handshake."""
    name: str = getattr(error, "reason", None) or ""
    return "ALERT" in name and any(refusal in name for refusal in _REFUSALS)


def reason(error: Exception) -> str:
    """The message of a TLS error without OpenSSL's file and line, e.g. `certificate verify failed: self-signed certificate`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and (name := getattr(error, "reason", None)):  # only OpenSSL's errors have one
        return str(name).replace("_", " ").lower()
    return str(error) or type(error).__name__


class Tls:
    """TLS of one connection, without I/O. After each call, `take()` returns the bytes to send."""

    def __init__(self, made: ssl.SSLContext, host: str, session: ssl.SSLSession | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = made.wrap_bio(self._incoming, self._outgoing, server_hostname=host, session=session)
        self.closed = False
        """The peer has closed the TLS connection properly (close_notify)."""
        self.error: ssl.SSLError | None = None
        """The error that occurred after the data returned last."""

    def take(self) -> bytes:
        """Remove and return the encrypted bytes to send to the peer."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def handshake(self, data: bytes = b"") -> bool:
        """Continue the handshake with bytes from the peer. Return whether it is complete.

        Raises:
            ssl.SSLError: the handshake failed. `take()` may return an alert for the peer.
        """
        if data:
            self._incoming.write(data)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes) -> bytes:
        """Decrypt bytes from the peer. Sets `closed` or `error` if the connection ends after the returned data."""
        self._incoming.write(data)
        pieces = []
        try:
            while piece := self.object.read(_MOST):
                pieces.append(piece)
                if not self._incoming.pending and (len(piece) < _MOST or not self.object.pending()):
                    break  # the next read would only raise SSLWantReadError, which takes as long as this one
            else:
                self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as error:
            self.error = error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, data: bytes) -> bytes:
        """Encrypt `data`."""
        view = memoryview(data)
        while view:
            view = view[self.object.write(view) :]
        return self._outgoing.read()

    def close(self) -> bytes:
        """The bytes of a close_notify alert, which announces the end of the data."""
        with suppress(ssl.SSLError):  # `unwrap` expects the peer's close_notify, for which this does not wait
            self.object.unwrap()
        return self.take()
