"""The Java trust store."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.cli import java_truststore
from azure_simulator import tls

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(not shutil.which("keytool"), reason="keytool, which comes with Java, is not installed")
@pytest.mark.slow
def test_java_reads_it(tmp_path: Path) -> None:
    """The store contains each certificate unchanged, no text between them, and a correct digest."""
    pems = [tls.make(tmp_path, ["localhost"])[0].read_text() for _ in range(2)]
    store = tmp_path / "store"
    store.write_bytes(java_truststore.jks("# The first\n" + "# The second\n".join(pems)))

    done = subprocess.run(
        ["keytool", "-list", "-rfc", "-keystore", str(store), "-storepass", java_truststore.PASSWORD],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == done.returncode, done.stdout
    assert [ssl.PEM_cert_to_DER_cert(pem) for pem in pems] == [
        ssl.PEM_cert_to_DER_cert(found) for found in java_truststore.PEM.findall(done.stdout)
    ]


def test_an_empty_store() -> None:
    """A store without certificates is a header and a digest."""
    assert 12 + 20 == len(java_truststore.jks(""))
    assert bytes.fromhex("feedfeed 00000002 00000000") == java_truststore.jks("")[:12]
