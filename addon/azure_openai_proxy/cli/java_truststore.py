"""Writes a Java trust store, because Java does not read PEM files. The module does not need mitmproxy.

The format is JKS (`sun.security.provider.JavaKeyStore`), which every Java version reads: a header, one entry per certificate, a digest.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from struct import pack

__all__ = ["PASSWORD", "jks"]

PASSWORD = "changeit"  # noqa: S105 - Java's default; the certificates are public
MAGIC, VERSION, TRUSTED = 0xFEEDFEED, 2, 2
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def jks(pem: str) -> bytes:
    """The bytes of a trust store with the certificates in `pem`."""
    certificates = [ssl.PEM_cert_to_DER_cert(found) for found in PEM.findall(pem)]
    store = pack(">III", MAGIC, VERSION, len(certificates))
    for number, certificate in enumerate(certificates):
        # alias, time of creation, type, length, certificate
        store += pack(">I", TRUSTED) + _text(str(number)) + pack(">Q", 0) + _text("X.509") + pack(">I", len(certificate)) + certificate
    digest = hashlib.sha1(PASSWORD.encode("utf-16-be") + b"Mighty Aphrodite" + store, usedforsecurity=False)
    return store + digest.digest()


def _text(text: str) -> bytes:
    return pack(">H", len(text)) + text.encode()
