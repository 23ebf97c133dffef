"""The environment variables that a client must set."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest

from azure_openai_proxy.cli import client_env, java_truststore


def test_a_base_url() -> None:
    """A base URL with plain HTTP needs no CA variables."""
    assert {"OPENAI_BASE_URL": "http://p:1/v1", "OPENAI_API_BASE": "http://p:1/v1"} == client_env.variables("base-url", "http://p:1", None)


def test_a_base_url_by_tls() -> None:
    """A base URL with TLS sets the CA but no proxy, for Java too."""
    found = client_env.variables("base-url", "https://p:1", Path("/ca.pem"))
    assert "-Djavax.net.ssl.trustStore=/azure-openai-proxy-bundle.jks" == found["JAVA_TOOL_OPTIONS"]
    assert "HTTPS_PROXY" not in found


def test_a_proxy() -> None:
    """The proxy and its CA are set under the names of all clients."""
    found = client_env.variables("proxy", "http://p:1", Path("/a b/ca.pem"))
    assert {"http://p:1"} == {found[name] for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
    assert [
        *("-Dhttps.proxyHost=p", "-Dhttps.proxyPort=1", "-Dhttp.proxyHost=p", "-Dhttp.proxyPort=1"),
        "-Djavax.net.ssl.trustStore=/a b/azure-openai-proxy-bundle.jks",
    ] == shlex.split(found["JAVA_TOOL_OPTIONS"])
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    assert {"/a b/azure-openai-proxy-bundle.pem"} == {found[name] for name in names}
    assert "/a b/ca.pem" == found["NODE_EXTRA_CA_CERTS"]


@pytest.mark.parametrize("system", [True, False])
def test_bundle(system: bool, tmp_path: Path) -> None:
    """The bundle contains the proxy's certificate and, if they are found, the system's."""
    (tmp_path / "system.pem").write_text("SYSTEM")
    (tmp_path / "ca.pem").write_text("OURS")
    path = client_env.bundle(tmp_path / "ca.pem", tmp_path / "system.pem" if system else None)
    assert ("SYSTEM\nOURS" if system else "OURS") == path.read_text()
    assert java_truststore.jks(path.read_text()) == (tmp_path / client_env.JAVA).read_bytes()


def test_a_bundle_of_ours_is_not_taken_for_the_system_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`env` in a shell that already has its variables does not use its own bundle as the system's certificates."""
    (tmp_path / client_env.BUNDLE).write_text("OURS")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / client_env.BUNDLE))
    assert tmp_path / client_env.BUNDLE != client_env.system_certificates()


def test_by_its_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m azure_openai_proxy.cli.client_env` runs the same command."""
    monkeypatch.setattr(sys, "argv", ["client", "env", "--way", "base-url"])
    monkeypatch.delitem(sys.modules, "azure_openai_proxy.cli.client_env")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("azure_openai_proxy.cli.client_env", run_name="__main__")
    assert "export OPENAI_BASE_URL=http://localhost:8080/v1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["env", "doctor"])
def test_an_unknown_argument_is_shown_without_control_characters(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error repeats it, on a terminal."""
    with pytest.raises(SystemExit, match="2"):
        client_env.main([command, "--\x1b[31m\u202e"])
    errors = capsys.readouterr().err
    assert ("--\\x1b[31m\\u202e" in errors, "\x1b" in errors, "\u202e" in errors) == (True, False, False)
