"""What a client is told to set works when it is set, and the doctor finds what is wrong with five ways that do not."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from azure_openai_proxy import client
from curl import Curl

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support import Mitmdump

MAPPER: dict[str, Any] = {"azure_openai_model_mapper": "gpt-4o=gpt-4o"}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, **env: str) -> Done:
    """`azure-openai-proxy ARGUMENTS`, in this environment alone."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = client.main(arguments, env)
    return Done(code, out.getvalue(), err.getvalue())


def evaluated(script: str) -> dict[str, str]:
    """What a shell has after `eval`."""
    words = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("export ")]
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("way", ["proxy", "base-url", "base-url by TLS"])
def test_what_is_printed_works(way: str, azure: Simulator, proxy: Proxies) -> None:
    """The doctor is content with what `env` says, and so is curl."""
    through = proxy(**MAPPER)
    at = through.https_url if way.endswith("TLS") else through.url

    printed = run("env", "--way", way.partition(" ")[0], "--proxy", at, "--ca", str(through.ca))
    env = evaluated(printed.stdout)
    found = run("doctor", **env, OPENAI_API_KEY=azure.key)

    assert (0, 0) == (printed.returncode, found.returncode), found.stdout
    assert "gpt-4o: answers" in found.stdout
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
    """Where the client is on another machine, there is no CA yet; a proxy that leads nobody on has it too."""
    through = proxy(**MAPPER, azure_openai_relay=relay)
    printed = run("env", "--proxy", through.url, "--ca", str(tmp_path / "ca.pem"))
    assert 0 == printed.returncode, printed.stderr
    assert through.ca.read_bytes().strip() == (tmp_path / "ca.pem").read_bytes().strip()


def test_no_ca_anywhere(azure: Simulator, tmp_path: Path) -> None:
    """One line, no traceback."""
    printed = [run("env", "--proxy", at, "--ca", str(tmp_path / "ca.pem")) for at in (azure.http_url, "http://127.0.0.1:9")]
    assert [1, 1] == [each.returncode for each in printed]
    assert [1, 1] == [each.stderr.count("\n") for each in printed]


BROKEN: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    # options of the proxy, the client's environment, what is found, what is to be done
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
    "wrong base URL": ({}, {"OPENAI_BASE_URL": "{url}/api/v2", "OPENAI_API_KEY": "{key}"}, "/api/v2/models gives 404", "ends with /v1"),
    "wrong port": ({}, {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "{key}"}, "takes no connection", "start the proxy"),
    "no such host": ({}, {"OPENAI_BASE_URL": "http://nowhere.invalid/v1", "OPENAI_API_KEY": "{key}"}, "has no address", "check the name"),
    "no way at all": ({}, {}, "a way to the proxy", "azure-openai-proxy env"),
    "a bad name by CONNECT": (
        {"azure_openai_relay": "off"},
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
    """For what is wrong, one line that says what, and one that says what to do."""
    through: Mitmdump = proxy(**MAPPER | options)
    fill = {"url": through.url, "key": azure.key, "azure": azure.http_url}

    found = run("doctor", **{name: value.format(**fill) for name, value in env.items()})

    failed = found.stdout.partition("FAIL")[2]
    assert 1 == found.returncode
    assert finds in failed.splitlines()[0]
    assert remedy in failed.splitlines()[1]
    assert azure.key not in found.stdout
    assert "Traceback" not in found.stderr
