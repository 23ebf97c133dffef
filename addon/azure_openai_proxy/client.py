"""The client's side: `azure-openai-proxy env` prints what a client must set, ready for `eval`; `azure-openai-proxy doctor` tries it.

Nothing here needs mitmproxy: with this file and `doctor.py` alone, `python -m azure_openai_proxy.client` works where the client is.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shlex
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import doctor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["bundle", "fetch_ca", "main", "variables"]

CA = Path("~/.mitmproxy/mitmproxy-ca-cert.pem")
BUNDLE = "azure-openai-proxy-bundle.pem"
LOCAL = "localhost,127.0.0.1,::1"


def variables(way: str, proxy: str, ca: Path | None, everyone: Path | None) -> dict[str, str]:
    """The environment of a client that comes this way. `ca` is the proxy's own, `everyone` the same with all others of the system.

    A client that goes through the proxy still meets other hosts with certificates of their own, so it needs all of them.
    """
    found: dict[str, str] = {}
    if way == "base-url":
        found |= {"OPENAI_BASE_URL": f"{proxy}/v1", "OPENAI_API_BASE": f"{proxy}/v1"}  # the second is for openai 0.28
    else:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            found |= {name: proxy, name.lower(): proxy}  # curl reads only the small http_proxy, others only capitals
        found |= {"NO_PROXY": LOCAL, "no_proxy": LOCAL, "NODE_USE_ENV_PROXY": "1"}
        at = urlsplit(proxy)
        java = [f"-D{scheme}.proxy{what}" for scheme in ("https", "http") for what in (f"Host={at.hostname}", f"Port={at.port or 80}")]
        found["JAVA_TOOL_OPTIONS"] = " ".join(java)
    if ca and everyone:
        # Python and Go; requests; curl; Node adds to its own
        found |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), str(everyone))
        found["NODE_EXTRA_CA_CERTS"] = str(ca)
    return found


def bundle(ca: Path, system: Path | None) -> Path:
    """A file beside `ca` with the system's certificates and that one."""
    path = ca.with_name(BUNDLE)
    texts = [file.read_text(encoding="utf-8") for file in (system, ca) if file]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def system_certificates() -> Path | None:
    """What is in use so far (SSL_CERT_FILE, OpenSSL's own), or where Linux distributions keep them."""
    paths = ssl.get_default_verify_paths()
    places = [paths.cafile or "", paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"]
    return next((path for path in map(Path, places) if path.is_file() and path.name != BUNDLE), None)


def fetch_ca(proxy: str, path: Path) -> Path:
    """Get the proxy's CA from the proxy: mitmproxy has it at a name that only its clients see."""
    at = urlsplit(proxy)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=doctor.PATIENCE)
    try:
        connection.request("GET", "http://mitm.it/cert/pem")
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or b"BEGIN CERTIFICATE" not in text:
        raise OSError(f"{proxy} gives no certificate ({answer.status})")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


NOTES = """\
# Java: keytool -importcert -noprompt -cacerts -storepass changeit -alias azure-openai-proxy -file {ca}
# Browsers: import {ca} as an authority (Firefox keeps its own list); Chromium takes --proxy-server={proxy}
# The key: export OPENAI_API_KEY=... (Azure's key, or anything where the proxy has one)
"""


def environment(asked: argparse.Namespace) -> str:
    """The lines that `env` prints."""
    proxy = asked.proxy.rstrip("/")
    ca: Path | None = None
    everyone: Path | None = None
    if asked.way == "proxy" or proxy.startswith("https:"):
        ca = Path(asked.ca).expanduser().absolute()
        if asked.fetch or not ca.is_file():
            fetch_ca(proxy, ca)
        everyone = bundle(ca, system_certificates())
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables(asked.way, proxy, ca, everyone).items()]
    return "\n".join(exports) + "\n" + NOTES.format(ca=ca or asked.ca, proxy=proxy)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="azure-openai-proxy", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    env = commands.add_parser("env", help='print what a client must set: eval "$(azure-openai-proxy env)"')
    env.add_argument("--way", choices=("base-url", "proxy"), default="proxy", help="a client with a base URL, or one without (default)")
    env.add_argument("--proxy", default="http://localhost:8080", help="where the proxy is (default %(default)s)")
    env.add_argument("--ca", default=str(CA), help="its CA (default %(default)s); fetched from the proxy if it is not there")
    env.add_argument("--fetch", action="store_true", help="fetch the CA in any case")
    check = commands.add_parser("doctor", help="try the way that the environment says, step by step, with a remedy for what fails")
    check.add_argument("--base-url", help="default: OPENAI_BASE_URL")
    check.add_argument("--proxy", help="default: HTTPS_PROXY")
    check.add_argument("--ca", help="default: SSL_CERT_FILE, or the system's certificates")
    check.add_argument("--key", help="default: OPENAI_API_KEY (others see the arguments of a command)")
    check.add_argument("--model", action="append", help="instead of all that /v1/models lists; repeatable")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    asked = _arguments(sys.argv[1:] if argv is None else argv)
    environ = os.environ if environ is None else environ
    if asked.command == "env":
        try:
            sys.stdout.write(environment(asked))
        except (OSError, http.client.HTTPException) as error:
            sys.stderr.write(f"azure-openai-proxy: no CA at {asked.ca}, and none from {asked.proxy}: {error}\n")
            return 1
        return 0
    setup = doctor.Setup(
        base=asked.base_url or environ.get("OPENAI_BASE_URL") or doctor.OPENAI,
        proxy=asked.proxy or environ.get("HTTPS_PROXY") or environ.get("https_proxy") or None,
        ca=asked.ca or environ.get("SSL_CERT_FILE") or None,
        key=asked.key or environ.get("OPENAI_API_KEY", ""),
    )
    healthy = True
    for finding in doctor.examine(setup, asked.model):
        healthy &= finding.ok
        sys.stdout.write(f"{finding}\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
