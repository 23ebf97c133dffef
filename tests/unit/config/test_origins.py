"""Allowed origins and host names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from azure_openai_proxy.config import origins
from azure_openai_proxy.config.settings import Found, resolve
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from azure_openai_proxy.config.origins import Origins

HOSTS = frozenset({"api.openai.com", "gateway.example.com"})
LOCAL = origins.allowed((), HOSTS, keyed=True)
FOREIGN = "https://evil.example"


def listing(*items: str) -> Origins:
    return origins.allowed(origins.parse(items), HOSTS, keyed=True)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "HTTP://LOCALHOST:3000",
        "https://localhost.:3000",
        "http://tauri.localhost",
        "ionic://localhost",
        "http://127.0.0.1:5173",
        "http://127.1.2.3",
        "http://[::1]",
        "https://[::1]:3000",
        "app://obsidian.md",
        "app://-",
        "file://",
        "tauri://localhost",
        "vscode-webview://1b2c3d",
        "vscode-file://vscode-app",
        "capacitor://localhost",
    ],
)
def test_local_origins(origin: str) -> None:
    """Pages of this machine and of applications on it are always allowed."""
    assert LOCAL.allows(origin, "127.0.0.1:8080")
    assert listing("https://chat.example.com").allows(origin, "127.0.0.1:8080")


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        FOREIGN,
        "http://localhost.evil.example",
        "http://evil-localhost",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1@evil.example",
        "http://127.evil.example",
        "http://0.0.0.0:3000",
        "http://192.168.1.5",
        "http://[::2]",
        "http://localhost http://evil.example",
        "http://localhost, https://evil.example",
        "http://localhost/",
        "http://localhost:x",
        "chrome-extension://abcdef",
        "http-app://x",
        "http://" + "a" * 300 + ".localhost",
    ],
)
def test_foreign_origins(origin: str) -> None:
    """All other origins, including opaque ones, are foreign."""
    assert not LOCAL.allows(origin, "127.0.0.1:8080")


@pytest.mark.parametrize(
    "item, allowed, foreign",
    [
        ("https://chat.example.com", ["https://chat.example.com"], ["http://chat.example.com", "https://chat.example.com:8443", FOREIGN]),
        ("https://Chat.Example.com:443/", ["https://chat.example.com"], ["https://a.chat.example.com"]),
        ("http://chat.example.com:80", ["http://chat.example.com"], ["https://chat.example.com"]),
        ("https://chat.example.com.", ["https://chat.example.com", "https://chat.example.com."], ["https://chat.example.org"]),
        (
            "https://*.example.com",
            ["https://a.example.com", "https://a.b.example.com"],
            ["https://example.com", "https://evilexample.com", "https://a.example.com:444", "https://a.example.com.evil.example"],
        ),
        ("http://*.example.com:*", ["http://a.example.com:3000", "http://a.example.com"], ["https://a.example.com:3000"]),
        ("http://dev:3*", ["http://dev:3000", "http://dev:3"], ["http://dev", "http://dev:80"]),
        ("http://pre*.example**.com", ["http://preview.example2.com"], ["http://review.example2.com"]),
        ("http://192.168.1.5:3000", ["http://192.168.1.5:3000"], ["http://192.168.1.50:3000"]),
        ("http://[FD00::1]:3000", ["http://[fd00::1]:3000"], ["http://[fd00::2]:3000"]),
        ("http://münchen.example", ["http://xn--mnchen-3ya.example"], ["http://munchen.example"]),
        ("chrome-extension://*", ["chrome-extension://abcdef"], ["moz-extension://abcdef"]),
        ("obsidian://app", ["obsidian://app"], ["obsidian://app2"]),
    ],
)
def test_listed_origins(item: str, allowed: list[str], foreign: list[str]) -> None:
    """An item allows its scheme, host and port, with * for any text within the host or the port."""
    rule = listing("https://other.example", item)
    assert [True] * len(allowed) == [rule.allows(origin, "") for origin in allowed]
    assert [False] * len(foreign) == [rule.allows(origin, "") for origin in foreign]
    assert not rule.allows("null", "")


@pytest.mark.parametrize(
    "item",
    [
        "null",
        "chat.example.com",
        "https://",
        "https://a b",
        "https://a/path",
        "https://u@a",
        "https://a:b",
        "https://-a",
        "://a",
        "https://" + "a" * 300,
    ],
)
def test_invalid_origins(item: str) -> None:
    """An item that is not an origin is rejected with the valid form."""
    with pytest.raises(SettingsError):
        origins.parse([item])


def test_every_origin() -> None:
    """Every origin is allowed with * alone and by default without a key, and a list applies without a key too."""
    for rule in (listing("*"), origins.allowed((), HOSTS, keyed=False)):
        assert rule.allows("null", "")
        assert rule.owns("evil.example")
    assert not origins.allowed(origins.parse(["https://a.example"]), HOSTS, keyed=False).allows(FOREIGN, "")
    with pytest.raises(SettingsError):
        origins.parse(["*", "https://a.example"])


@pytest.mark.parametrize(
    "backend, every",
    [
        ("{name: a, endpoint: https://a.example}", True),
        ("{name: a, endpoint: https://a.example, token: k}", False),
        ("{name: a, endpoint: https://a.example, token_file: FILE}", False),
        ("{name: a, endpoint: https://a.example, entra: cli}", False),
        ("{name: a, endpoint: https://a.example}, {name: b, endpoint: https://b.example, token: k}", False),
    ],
)
def test_when_a_key_is_configured(backend: str, every: bool, tmp_path: Any) -> None:
    """A key counts as configured if any backend has a token, a token file or Entra."""
    (tmp_path / "key").write_text("k")
    raw = YAML(typ="safe").load(f"[{backend}]".replace("FILE", str(tmp_path / "key")))
    assert every == resolve({"azure_openai_backends": Found(raw, "here")}).origins.every


def test_the_key_is_not_used_in_openai_mode() -> None:
    """In openai mode a configured key is not used, so every origin is allowed."""
    found = {"azure_openai_endpoint": "https://r.openai.azure.com", "azure_openai_token": "k", "azure_openai_proxy_mode": "openai"}
    assert resolve({name: Found(value, "here") for name, value in found.items()}).origins.every


@pytest.mark.parametrize(
    "host, own",
    [
        ("", True),
        ("localhost", True),
        ("a.b.localhost", True),
        ("127.0.0.1", True),
        ("192.168.1.5", True),
        ("127.1", True),
        ("0x7f000001", True),
        ("[::1]", True),
        ("[fd00::1]", True),
        ("host.docker.internal", True),
        ("host.containers.internal", True),
        ("api.openai.com", True),
        ("gateway.example.com", True),
        ("chat.example.com", True),
        ("a.pages.example", True),
        ("proxy", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("1.evil.example", False),
        ("evil.0xg", False),
        ("md", False),
        ("a" * 400 + ".pages.example", False),
    ],
)
def test_own_hosts(host: str, own: bool) -> None:
    """The proxy's own hosts are names that no other site can have, configured names, and those of allowed web origins."""
    assert own == listing("https://chat.example.com", "http://*.pages.example:*", "obsidian://md").owns(host)


@pytest.mark.parametrize(
    "authority, expected",
    [
        ("", ("", "")),
        ("LocalHost", ("localhost", "")),
        ("localhost.:8080", ("localhost", "8080")),
        ("[::1]", ("[::1]", "")),
        ("[::1]:8080", ("[::1]", "8080")),
        (":8080", (":8080", "")),
        ("a" * 301, ("?", "")),
    ],
)
def test_a_host_header(authority: str, expected: tuple[str, str]) -> None:
    """A Host header is split into host and port."""
    assert expected == origins.split(authority)


@pytest.mark.parametrize(
    "origin, authority, allowed",
    [
        ("http://gateway.example.com:8080", "gateway.example.com:8080", True),
        ("https://gateway.example.com", "gateway.example.com", True),
        ("https://gateway.example.com", "gateway.example.com:443", True),
        ("https://api.openai.com", "api.openai.com", True),
        ("http://192.168.1.5:8080", "192.168.1.5:8080", True),
        ("http://gateway.example.com:8080", "gateway.example.com:8081", False),
        ("http://gateway.example.com", "192.168.1.5", False),
        ("http://evil.example:8080", "evil.example:8080", False),
        ("ws://gateway.example.com", "gateway.example.com", False),
    ],
)
def test_an_origin_that_is_the_proxy(origin: str, authority: str, allowed: bool) -> None:
    """An origin equal to the request's Host and port is allowed if the Host is the proxy's own."""
    assert allowed == LOCAL.allows(origin, authority)


def test_the_start_up_line_names_the_origins() -> None:
    """The line at startup contains the origins as written in the option."""
    assert "any origin" == str(listing("*"))
    assert "local origins and https://chat.example.com and http://*.example.com:*" == str(
        listing("https://chat.example.com/", "http://*.example.com:*")
    )
