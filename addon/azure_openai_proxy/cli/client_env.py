"""The client's side: `azure-openai-proxy env` prints what a client must set, ready for `eval`; `azure-openai-proxy doctor` tries it.

What `env` prints is safe to evaluate, whatever its arguments and the paths hold: values are quoted, and those with control characters
are refused. Nothing here needs mitmproxy: with this file, `doctor.py` and `java_truststore.py` alone,
`python -m azure_openai_proxy.cli.client_env` works where the client is.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shlex
import ssl
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import quoting

from . import doctor, java_truststore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["bundle", "fetch_ca", "main", "variables"]

CA = Path("~/.mitmproxy/mitmproxy-ca-cert.pem")
BUNDLE = "azure-openai-proxy-bundle.pem"
JAVA = "azure-openai-proxy-bundle.jks"
SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
LOCAL = "localhost,127.0.0.1,::1"


def variables(way: str, proxy: str, ca: Path | None) -> dict[str, str]:
    """The environment of a client that comes this way and trusts `ca`, the proxy's own, and what `bundle` wrote beside it."""
    found: dict[str, str] = {}
    java: list[str] = []
    if way == "base-url":
        found |= {"OPENAI_BASE_URL": f"{proxy}/v1", "OPENAI_API_BASE": f"{proxy}/v1"}  # the second is for openai 0.28
    else:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            found |= {name: proxy, name.lower(): proxy}  # curl reads only the small http_proxy, others only capitals
        found |= {"NO_PROXY": LOCAL, "no_proxy": LOCAL, "NODE_USE_ENV_PROXY": "1"}
        at = doctor.split(proxy)
        java += [f"-D{scheme}.proxy{what}" for scheme in ("https", "http") for what in (f"Host={at.hostname}", f"Port={at.port or 80}")]
    if ca:
        # Python and Go; requests; curl; Node adds to its own
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        found |= dict.fromkeys(names, str(ca.with_name(BUNDLE))) | {"NODE_EXTRA_CA_CERTS": str(ca)}
        java.append(shlex.quote(f"-Djavax.net.ssl.trustStore={ca.with_name(JAVA)}"))  # Java takes quotes as a shell does
    return found | ({"JAVA_TOOL_OPTIONS": " ".join(java)} if java else {})


def quoted(value: str) -> str:
    """`value` for a POSIX shell and for fish, which reads a backslash between single quotes in another way."""
    if "\\" not in value:
        return shlex.quote(value)
    return "\\\\".join(shlex.quote(part) if part else "" for part in value.split("\\"))


def checked(value: str) -> str:
    """`value`, for a line of a script.

    Raises:
        ValueError: it has a character in it that ends the line or controls the terminal.
    """
    if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in value):
        raise ValueError(f"a control character in {quoting.line(value)}")
    return value


def bundle(ca: Path, system: Path | None) -> Path:
    """A file beside `ca` with the system's certificates and that one, and the same for Java.

    A client that goes through the proxy still meets other hosts with certificates of their own, so it needs all of them.
    """
    path = ca.with_name(BUNDLE)
    text = "\n".join(file.read_text(encoding="utf-8") for file in (system, ca) if file)
    path.write_text(text, encoding="utf-8")
    ca.with_name(JAVA).write_bytes(java_truststore.jks(text))
    return path


def system_certificates() -> Path | None:
    """What is in use so far (SSL_CERT_FILE, OpenSSL's own), or where Linux distributions and macOS keep them."""
    paths = ssl.get_default_verify_paths()
    places = [paths.cafile or "", paths.openssl_cafile, *SYSTEM]
    return next((path for path in map(Path, places) if path.is_file() and path.name != BUNDLE), None)


def fetch_ca(proxy: str, path: Path) -> Path:
    """Get the proxy's CA from the proxy: mitmproxy has it at a name that only its clients see."""
    at = doctor.split(proxy)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=doctor.PATIENCE)
    try:
        connection.request("GET", "http://mitm.it/cert/pem")
        answer = connection.getresponse()
        text = answer.read(doctor.MOST)
    finally:
        connection.close()
    if answer.status != 200 or b"BEGIN CERTIFICATE" not in text:
        raise OSError(f"{proxy} gives no certificate ({answer.status})")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


# What no variable can say. A command here is one to paste.
OF_TRUST = """\
# Chromium and Chrome on Linux (certutil is in libnss3-tools), then start it anew:
#   mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -A -n azure-openai-proxy -t C,, -i {ca}
# Firefox, and programs on macOS and Windows that ask the system (Go, browsers): import {ca} as an authority
"""
OF_A_PROXY = """\
# Chromium: --proxy-server={proxy}, where it does not read these variables. Firefox: its settings have the proxy
# Node before 22.21 reads no proxy variables: give its program a base URL (--way base-url)
"""
OF_THE_KEY = """\
# The key: export OPENAI_API_KEY=... (Azure's key, or anything where the proxy has one)
"""


def environment(asked: argparse.Namespace) -> str:
    """The lines that `env` prints."""
    proxy = checked(asked.proxy).rstrip("/")
    try:
        doctor.split(proxy)
    except ValueError as error:
        raise ValueError(f"--proxy {proxy}: {error}") from None
    ca: Path | None = None
    notes = OF_THE_KEY
    if asked.way == "proxy":
        notes = OF_A_PROXY.format(proxy=quoted(proxy)) + notes
    if asked.way == "proxy" or proxy.startswith("https:"):
        ca = Path(checked(str(Path(asked.ca).expanduser().absolute())))
        if asked.fetch or not ca.is_file():
            fetch_ca(proxy, ca)
        bundle(ca, system_certificates())
        notes = OF_TRUST.format(ca=quoted(str(ca))) + notes
    exports = [f"export {name}={quoted(value)}" for name, value in variables(asked.way, proxy, ca).items()]
    return "\n".join(exports) + "\n" + notes


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
        except ValueError as error:
            sys.stderr.write(f"azure-openai-proxy: {quoting.line(str(error))}\n")
            return 1
        except (OSError, http.client.HTTPException) as error:
            what = quoting.line(f"no CA at {asked.ca}, and none from {asked.proxy}: {error}")
            sys.stderr.write(f"azure-openai-proxy: {what}\n")
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
