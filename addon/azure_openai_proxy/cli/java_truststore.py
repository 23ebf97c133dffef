"""The certificates to trust, as Java reads them: it knows no PEM, and its own store belongs to the system. Nothing here needs mitmproxy.

The format is JKS (`sun.security.provider.JavaKeyStore`), which every Java reads: a head, an entry for each certificate, a digest.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from struct import pack

__all__ = ["PASSWORD", "jks"]

PASSWORD = "changeit"  # noqa: S105 - Java's own default: it guards nothing, the certificates are public
MAGIC, VERSION, TRUSTED = 0xFEEDFEED, 2, 2
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def jks(pem: str) -> bytes:
    """A trust store with the certificates in `pem`."""
    certificates = [ssl.PEM_cert_to_DER_cert(found) for found in PEM.findall(pem)]
    store = pack(">III", MAGIC, VERSION, len(certificates))
    for number, certificate in enumerate(certificates):
        # an alias, when it was made, what it is
        store += pack(">I", TRUSTED) + _text(str(number)) + pack(">Q", 0) + _text("X.509") + pack(">I", len(certificate)) + certificate
    digest = hashlib.sha1(PASSWORD.encode("utf-16-be") + b"Mighty Aphrodite" + store, usedforsecurity=False)
    return store + digest.digest()


def _text(text: str) -> bytes:
    return pack(">H", len(text)) + text.encode()
