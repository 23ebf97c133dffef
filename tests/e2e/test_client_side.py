"""The printed environment variables work, and the doctor finds the fault in five setups that do not work."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import socket
import subprocess
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from azure_openai_proxy.cli import client_env
from support.curl import Curl
from support.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

MAPPER: dict[str, Any] = {"azure_openai_model_mapper": "gpt-4o=gpt-4o"}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, **env: str) -> Done:
    """`azure-openai-proxy ARGUMENTS`, in this environment alone."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = client_env.main(arguments, env)
    return Done(code, out.getvalue(), err.getvalue())


def evaluated(script: str) -> dict[str, str]:
    """What a shell has after `eval`."""
    words = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("export ")]
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("way", ["proxy", "base-url", "base-url by TLS"])
def test_what_is_printed_works(way: str, azure: Simulator, proxy: Proxies) -> None:
    """`doctor` and curl work with the variables that `env` prints."""
    through = proxy(**MAPPER)
    at = through.https_url if way.endswith("TLS") else through.url

    printed = run("env", "--way", way.partition(" ")[0], "--proxy", at, "--ca", str(through.ca))
    env = evaluated(printed.stdout)
    found = run("doctor", **env, OPENAI_API_KEY=azure.key)

    assert (0, 0) == (printed.returncode, found.returncode), found.stdout
    assert "gpt-4o: works" in found.stdout
    assert azure.key not in found.stdout


def test_other_hosts_keep_working(azure: Simulator, proxy: Proxies, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle has the system's certificates too: a client meets other hosts with certificates of their own."""
    through = proxy(**MAPPER)
    monkeypatch.setenv("SSL_CERT_FILE", str(azure.ca))
    env = evaluated(run("env", "--proxy", through.url, "--ca", str(through.ca)).stdout)

    answer = Curl(["--proxy", env["HTTPS_PROXY"], "--cacert", env["CURL_CA_BUNDLE"]])(f"{azure.https_url}/")

    assert "" == answer.error


@pytest.mark.parametrize("relay", ["local", "off"])
def test_the_ca_comes_from_the_proxy(relay: str, proxy: Proxies, tmp_path: Path) -> None:
    """On another machine the client has no CA file yet; a proxy that relays to no other hosts serves it too."""
    through = proxy(**MAPPER, azure_openai_allowed_destinations=relay)
    printed = run("env", "--proxy", through.url, "--ca", str(tmp_path / "ca.pem"))
    assert 0 == printed.returncode, printed.stderr
    assert through.ca.read_bytes().strip() == (tmp_path / "ca.pem").read_bytes().strip()


def test_no_ca_anywhere(azure: Simulator, tmp_path: Path) -> None:
    """One line, no traceback."""
    printed = [run("env", "--proxy", at, "--ca", str(tmp_path / "ca.pem")) for at in (azure.http_url, "http://127.0.0.1:9")]
    assert [1, 1] == [each.returncode for each in printed]
    assert [1, 1] == [each.stderr.count("\n") for each in printed]


# What an argument or the name of a folder may hold
HOSTILE = {
    "command": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "single quote": "a'; touch pwned; '",
    "double quote": 'a"; touch pwned; "',
    "backslash": "a\\",
    "backslashes and quotes": "\\'; touch pwned; '\\\\",
    "semicolon": "a; touch pwned #",
    "glob": "*?[a]{b,c}",
    "history": "!!",
    "variable": "$HOME ${HOME} ~",
    "option of Java's": "a -XX:OnError=touch",
    "another language": "\u3042\u3000b\u00e9",
}
SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell), reason=f"{shell} is not installed"))
    for shell in ("sh", "dash", "bash", "zsh", "fish")
]


def read_back(shell: str, script: str, home: Path) -> dict[str, str]:
    """The environment of a program that this shell starts once it has evaluated the script."""
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(home), "SCRIPT": script}
    command = 'eval "$SCRIPT"; exec env -0'
    done = subprocess.run([shell, "-c", command], cwd=home, env=env, capture_output=True, timeout=PATIENCE, check=True)
    assert b"" == done.stderr
    return dict(entry.partition("=")[::2] for entry in done.stdout.decode().split("\0") if entry)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_printed_is_safe_to_evaluate(text: str, shell: str, tmp_path: Path, confdir: Path) -> None:
    """Each variable has exactly the value that was meant, and nothing else happens, whatever a path or a URL holds."""
    folder = tmp_path / text
    folder.mkdir()
    shutil.copy(confdir / "mitmproxy-ca-cert.pem", folder / "ca.pem")
    (tmp_path / "empty").mkdir()
    at = f"http://localhost:8080/{text.replace(' ', '%20').replace(chr(0x3000), '')}"

    for way, name in (("proxy", "HTTPS_PROXY"), ("base-url", "OPENAI_BASE_URL")):
        printed = run("env", "--way", way, "--proxy", at, "--ca", str(folder / "ca.pem"))
        assert 0 == printed.returncode, printed.stderr
        env = read_back(shell, printed.stdout, tmp_path / "empty")
        assert at + ("/v1" if way == "base-url" else "") == env[name]
        assert way == "base-url" or str(folder / "ca.pem") == env["NODE_EXTRA_CA_CERTS"]
        assert way == "base-url" or str(folder / client_env.JAVA) in shlex.split(env["JAVA_TOOL_OPTIONS"])[-1]
        assert env.keys() <= {*evaluated(printed.stdout), "PATH", "LANG", "HOME", "SCRIPT", "PWD", "OLDPWD", "SHLVL", "_"}

    assert [] == list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "proxy_url", ["http://h:1/\ntouch pwned", "http://h:1/\r", "http://h:1/\x1b[2J", "http://h:1/\u2028", "http://h:1/\udc80"]
)
@pytest.mark.parametrize("way", ["proxy", "base-url"])
def test_a_control_character_is_refused(way: str, proxy_url: str) -> None:
    """With one line, and nothing to evaluate."""
    printed = run("env", "--way", way, "--proxy", proxy_url)

    assert (1, "", 1) == (printed.returncode, printed.stdout, printed.stderr.count("\n"))
    assert "a control character in http://h:1/" in printed.stderr
    assert printed.stderr[:-1].isprintable()


def test_nor_may_it_be_in_a_path(tmp_path: Path, confdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of --ca, or of the folder that it is relative to."""
    folder = tmp_path / "a\ntouch pwned"
    folder.mkdir()
    shutil.copy(confdir / "mitmproxy-ca-cert.pem", folder / "ca.pem")
    monkeypatch.chdir(folder)

    for path in (str(folder / "ca.pem"), "ca.pem"):
        printed = run("env", "--ca", path)
        assert (1, "", 1) == (printed.returncode, printed.stdout, printed.stderr.count("\n"))


@pytest.mark.parametrize("url", ["localhost:8080", "http://h:x", "http://a -javaagent:b:1", "ftp://h"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """One line says how to write it."""
    printed = run("env", "--proxy", url)
    assert (1, "", 1) == (printed.returncode, printed.stdout, printed.stderr.count("\n"))
    assert f"--proxy {url}" in printed.stderr


class Other:
    """A service that is not the proxy: it gives the same response to everything, and records the received bytes."""

    def __init__(self, answer: bytes) -> None:
        self.received: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, args=(answer,), daemon=True).start()

    def _serve(self, answer: bytes) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    self.received.append(connection.recv(65536))
                    connection.sendall(answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


OTHERS = {
    "a service with a health check": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n",
    "a redirect to another": b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\x1b[2J\r\n",
    "a page": b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>",
}


@pytest.mark.parametrize("answer", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "HTTPS_PROXY"])
def test_the_doctor_gives_no_key_to_others(variable: str, answer: bytes) -> None:
    """It is sent once the other side has shown to be the proxy; no redirect is followed before that."""
    other = Other(answer)
    env = {variable: other.url + ("/v1" if variable == "OPENAI_BASE_URL" else "")}

    found = run("doctor", **env, OPENAI_API_KEY="the-key-of-the-client")
    other.close()

    assert 1 == found.returncode
    assert other.received
    assert b"the-key-of-the-client" not in b"".join(other.received)
    assert [] == [line for line in found.stdout.splitlines() if not line.isprintable()]
    assert "Traceback" not in found.stderr


BROKEN: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    # options of the proxy, the client's environment, the finding, the remedy
    "no CA": ({}, {"HTTPS_PROXY": "{url}", "OPENAI_API_KEY": "{key}"}, "is not trusted", "azure-openai-proxy env"),
    "wrong key": ({}, {"OPENAI_BASE_URL": "{url}/v1", "OPENAI_API_KEY": "wrong"}, "401", "set OPENAI_API_KEY"),
    "wrong deployment": (
        {"azure_openai_model_mapper": "gpt-4o=nothing"},
        {"OPENAI_BASE_URL": "{url}/v1", "OPENAI_API_KEY": "{key}"},
        "gpt-4o: 404",
        "AZURE_OPENAI_MODEL_MAPPER=gpt-4o=DEPLOYMENT",
    ),
    "unreachable backend": (
        {"azure_openai_endpoint": "http://127.0.0.1:9"},
        {"OPENAI_BASE_URL": "{url}/v1", "OPENAI_API_KEY": "{key}"},
        "502",
        "AZURE_OPENAI_ENDPOINT",
    ),
    "wrong base URL": ({}, {"OPENAI_BASE_URL": "{url}/api/v2", "OPENAI_API_KEY": "{key}"}, "/api/v2/models returns 404", "ends with /v1"),
    "wrong port": ({}, {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "{key}"}, "accepts no connection", "start the proxy"),
    "no such host": (
        {},
        {"OPENAI_BASE_URL": "http://nowhere.invalid/v1", "OPENAI_API_KEY": "{key}"},
        "cannot be resolved",
        "check the name",
    ),
    "no way at all": ({}, {}, "no proxy is configured", "azure-openai-proxy env"),
    "a bad name by CONNECT": (
        {"azure_openai_allowed_destinations": "off"},
        {"OPENAI_BASE_URL": "https://other.example/v1", "HTTPS_PROXY": "{url}"},
        "no TLS with other.example",
        "its log",
    ),
    "no URL": ({}, {"OPENAI_BASE_URL": "localhost:8080"}, "base URL", "http://localhost:8080/v1"),
    "somebody else": ({}, {"OPENAI_BASE_URL": "{azure}/v1", "OPENAI_API_KEY": "{key}"}, "not the proxy", "see where the proxy listens"),
}


@pytest.mark.parametrize("options, env, finds, remedy", BROKEN.values(), ids=BROKEN)
def test_the_doctor_names_the_remedy(
    options: dict[str, Any], env: dict[str, str], finds: str, remedy: str, azure: Simulator, proxy: Proxies
) -> None:
    """For each fault the doctor prints one line with the finding and one with the remedy."""
    through: Mitmdump = proxy(**MAPPER | options)
    fill = {"url": through.url, "key": azure.key, "azure": azure.http_url}

    found = run("doctor", **{name: value.format(**fill) for name, value in env.items()})

    failed = found.stdout.partition("FAIL")[2]
    assert 1 == found.returncode
    assert finds in failed.splitlines()[0]
    assert remedy in failed.splitlines()[1]
    assert azure.key not in found.stdout
    assert "Traceback" not in found.stderr
