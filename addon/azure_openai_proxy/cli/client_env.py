"""Client setup: `azure-openai-proxy env` prints a client's environment variables for `eval`; `azure-openai-proxy doctor` tests them.

The output of `env` is safe to evaluate for all arguments and paths: values are quoted, and values with control characters are
rejected. The module needs neither mitmproxy nor another library: with a copy of the folder `azure_openai_proxy`,
`python -m azure_openai_proxy.cli.client_env` runs on the client's machine.
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
from typing import TYPE_CHECKING, NoReturn

from azure_openai_proxy.formats import quoting
from azure_openai_proxy.formats.paths import expanded

from . import doctor, java_truststore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["bundle", "main", "variables"]

CA = Path("~/.mitmproxy/mitmproxy-ca-cert.pem")
BUNDLE = "azure-openai-proxy-bundle.pem"
JAVA = "azure-openai-proxy-bundle.jks"
SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
LOCAL = "localhost,127.0.0.1,::1"


def variables(way: str, proxy: str, ca: Path | None) -> dict[str, str]:
    """The environment variables of a client.

    Args:
        way: "base-url" or "proxy", how the client connects.
        proxy: the proxy's URL.
        ca: the proxy's CA certificate, with the files of `bundle` beside it; None without TLS.
    """
    found: dict[str, str] = {}
    java: list[str] = []
    if way == "base-url":
        found |= {"OPENAI_BASE_URL": f"{proxy}/v1", "OPENAI_API_BASE": f"{proxy}/v1"}  # openai 0.28 reads the second
    else:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            found |= {name: proxy, name.lower(): proxy}  # curl reads only lowercase http_proxy, others only uppercase
        found |= {"NO_PROXY": LOCAL, "no_proxy": LOCAL, "NODE_USE_ENV_PROXY": "1"}
        at = doctor.split(proxy)
        java += [f"-D{scheme}.proxy{what}" for scheme in ("https", "http") for what in (f"Host={at.hostname}", f"Port={at.port or 80}")]
    if ca:
        # Python and Go; requests; curl; Node adds it to its built-in certificates
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        found |= dict.fromkeys(names, str(ca.with_name(BUNDLE))) | {"NODE_EXTRA_CA_CERTS": str(ca)}
        java.append(shlex.quote(f"-Djavax.net.ssl.trustStore={ca.with_name(JAVA)}"))  # Java interprets quotes like a shell
    return found | ({"JAVA_TOOL_OPTIONS": " ".join(java)} if java else {})


def quoted(value: str) -> str:
    """Quote a value for POSIX shells and fish. fish interprets a backslash inside single quotes, POSIX shells do not."""
    if "\\" not in value:
        return shlex.quote(value)
    return "\\\\".join(shlex.quote(part) if part else "" for part in value.split("\\"))


def checked(value: str) -> str:
    """Return `value` if it is safe in a line of a script.

    Raises:
        ValueError: `value` has a line break or another control character.
    """
    if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in value):
        raise ValueError(f"a control character in {quoting.line(value)}")
    return value


def bundle(ca: Path, system: Path | None) -> Path:
    """Write a file beside `ca` with the system's certificates and `ca`, and the same as a Java trust store.

    A client of the proxy still connects to other hosts, so it needs the public certificates too.

    Raises:
        OSError: a file cannot be read or written.
    """
    path = ca.with_name(BUNDLE)
    text = "\n".join(file.read_text(encoding="utf-8") for file in (system, ca) if file)
    path.write_text(text, encoding="utf-8")
    ca.with_name(JAVA).write_bytes(java_truststore.jks(text))
    return path


def system_certificates() -> Path | None:
    """The certificates in use (SSL_CERT_FILE or OpenSSL's default), or else the default file of Linux distributions or macOS."""
    paths = ssl.get_default_verify_paths()
    places = [paths.cafile or "", paths.openssl_cafile, *SYSTEM]
    return next((path for path in map(Path, places) if path.is_file() and path.name != BUNDLE), None)


def fetch_ca(proxy: str, path: Path) -> Path:
    """Download the proxy's CA to `path`. mitmproxy serves it to its clients under the host name mitm.it.

    Raises:
        OSError: the proxy cannot be reached or returns no certificate.
    """
    at = doctor.split(proxy)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=doctor.PATIENCE)
    try:
        connection.request("GET", "http://mitm.it/cert/pem")
        response = connection.getresponse()
        text = response.read(doctor.MOST)
    finally:
        connection.close()
    if response.status != 200 or b"BEGIN CERTIFICATE" not in text:
        raise OSError(f"{proxy} returned no certificate ({response.status})")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


# Settings that have no environment variable, as comments with commands to paste.
OF_TRUST = """\
# Chromium and Chrome on Linux (certutil is in libnss3-tools), then restart it:
#   mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -A -n azure-openai-proxy -t C,, -i {ca}
# Firefox, and programs on macOS and Windows that ask the system (Go, browsers): import {ca} as a certificate authority
"""
OF_A_PROXY = """\
# Chromium: --proxy-server={proxy}, if it does not read these variables. Firefox: set the proxy in its settings
# Node before 22.21 reads no proxy variables: give its program a base URL (--way base-url)
"""
OF_THE_KEY = """\
# The key: export OPENAI_API_KEY=... (Azure's key, or any value if the proxy has a key)
"""


def environment(arguments: argparse.Namespace) -> str:
    """The output of `env`.

    Raises:
        ValueError: an argument is not a URL or has control characters.
        OSError, HTTPException: the CA cannot be read or downloaded.
    """
    proxy = checked(arguments.proxy).rstrip("/")
    try:
        doctor.split(proxy)
    except ValueError as error:
        raise ValueError(f"--proxy {proxy}: {error}") from None
    ca: Path | None = None
    notes = OF_THE_KEY
    if arguments.way == "proxy":
        notes = OF_A_PROXY.format(proxy=quoted(proxy)) + notes
    if arguments.way == "proxy" or proxy.startswith("https:"):
        ca = Path(checked(str(expanded(arguments.ca).absolute())))
        if arguments.fetch or not ca.is_file():
            fetch_ca(proxy, ca)
        bundle(ca, system_certificates())
        notes = OF_TRUST.format(ca=quoted(str(ca))) + notes
    exports = [f"export {name}={quoted(value)}" for name, value in variables(arguments.way, proxy, ca).items()]
    return "\n".join(exports) + "\n" + notes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(quoting.line(message))  # it repeats the arguments, which may have control characters


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="azure-openai-proxy", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    purpose = 'print the environment variables that a client must set, for a POSIX shell or fish: eval "$(azure-openai-proxy env)"'
    env = commands.add_parser("env", help=purpose, description=f"P{purpose[1:]}")
    env.add_argument(
        "--way",
        choices=("base-url", "proxy"),
        default="proxy",
        help="how the client connects: by its base URL, or through HTTPS_PROXY (default)",
    )
    env.add_argument("--proxy", default="http://localhost:8080", help="the proxy's URL (default %(default)s)")
    env.add_argument(
        "--ca", default=str(CA), help="file of the proxy's CA (default %(default)s); downloaded from the proxy if it is missing"
    )
    env.add_argument("--fetch", action="store_true", help="download the CA even if the file exists")
    purpose = "test a client's connection through the proxy step by step, and say what to do about each failure"
    check = commands.add_parser("doctor", help=purpose, description=f"T{purpose[1:]}.")
    check.add_argument("--base-url", help="default: OPENAI_BASE_URL")
    check.add_argument("--proxy", help="default: HTTPS_PROXY")
    check.add_argument("--ca", help="default: SSL_CERT_FILE, or the system's certificates")
    check.add_argument("--key", help="default: OPENAI_API_KEY (a command's arguments are visible to other users)")
    check.add_argument("--model", action="append", help="test this model instead of all models of /v1/models; repeatable")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    environ = os.environ if environ is None else environ
    if arguments.command == "env":
        try:
            text = environment(arguments)
        except ValueError as error:
            sys.stderr.write(f"azure-openai-proxy: {quoting.line(str(error))}\n")
            return 1
        except (OSError, http.client.HTTPException) as error:
            what = quoting.line(f"cannot read the CA {arguments.ca} or download it from {arguments.proxy}: {error}")
            sys.stderr.write(f"azure-openai-proxy: {what}\n")
            return 1
        sys.stdout.write(text)
        return 0
    setup = doctor.Setup(
        base=arguments.base_url or environ.get("OPENAI_BASE_URL") or doctor.OPENAI,
        proxy=arguments.proxy or environ.get("HTTPS_PROXY") or environ.get("https_proxy") or None,
        ca=arguments.ca or environ.get("SSL_CERT_FILE") or None,
        key=arguments.key or environ.get("OPENAI_API_KEY", ""),
    )
    healthy = True
    for finding in doctor.examine(setup, arguments.model):
        healthy &= finding.ok
        sys.stdout.write(f"{finding}\n")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
