"""Warnings about settings that put the key at risk or are probably not meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from azure_openai_proxy.api.backend import Backend, parse_base
from azure_openai_proxy.config import file_trust, startup_warnings
from azure_openai_proxy.config.prices import PriceFile, parse_models
from azure_openai_proxy.config.settings import Found, Settings


def settings(endpoint: str, **more: Any) -> Settings:
    return Settings(backends=(Backend(name="a", base=parse_base(endpoint)[0], token="key", apiversion="v1"),), **more)


def warned(chosen: Settings, found: dict[str, Found] | None = None, file: Path | None = None, *, ssl_insecure: bool = False) -> list[str]:
    return list(startup_warnings.careless(chosen, found or {}, file, ssl_insecure=ssl_insecure))


@pytest.mark.parametrize(
    "endpoint, lines",
    [
        ("https://r.openai.azure.com", 0),
        ("http://localhost:9000", 0),
        ("http://azure.localhost", 0),
        ("http://127.0.0.1:9000", 0),
        ("http://[::1]:9000", 0),
        ("http://10.0.0.7:9000", 1),
        ("http://gateway.example", 1),
        ("http://localhost.example", 1),
    ],
)
def test_a_key_in_the_clear(endpoint: str, lines: int) -> None:
    """Plain HTTP to another machine causes a warning, in openai mode too."""
    assert lines == len(warned(settings(endpoint)))
    assert lines == len(warned(Settings(mode="openai", passthrough_endpoint=parse_base(endpoint)[0])))


def test_each_address_once() -> None:
    """Several backends with the same address cause one warning."""
    chosen = settings("http://10.0.0.7")
    assert 1 == len(warned(dataclasses.replace(chosen, backends=chosen.backends * 2)))


def test_unknown_tiers() -> None:
    """Each tier of the price file that is not known causes one warning, with the known name that is similar, or all of them."""
    tiers = parse_models(
        {
            "a": {"input": 1, "tiers": {"prioritty": {"input": 2}, "batch": {"input": 2}, "default": {}}},
            "b": {"input": 1, "tiers": {"prioritty": {}}, "zones": {"eu": {"tiers": {"Flex": {}, "nightly": {}}}}},
        }
    )
    where = "azure_openai_prices (prices.yaml): b: tiers:"
    assert [
        f"{where} 'prioritty' is not a known tier: did you mean priority?",
        f"{where} 'Flex' is not a known tier: did you mean flex?",
        f"{where} 'nightly' is not a known tier: known ones are batch, default, fast, flex, priority, scale, ultrafast.",
    ] == list(startup_warnings.unknown_tiers(PriceFile(Path("prices.yaml"), tiers)))


@pytest.mark.parametrize("where, lines", [("--set", 1), ("environment variable AZURE_OPENAI_TOKEN", 0), ("mitm_config.yaml", 0)])
def test_a_key_on_the_command_line(where: str, lines: int) -> None:
    """A key on the command line causes a warning, because the process list shows it."""
    (*found,) = warned(settings("https://r"), {"azure_openai_token": Found("sesame", where)})
    assert lines == len(found)
    assert "sesame" not in str(found)


def test_a_token_that_is_not_used() -> None:
    """A token beside Entra ID causes a warning; as the default of listed backends it may be used."""
    token = {"azure_openai_token": Found("sesame", "mitm_config.yaml")}
    chosen = settings("https://r")
    entra = dataclasses.replace(chosen, backends=(dataclasses.replace(chosen.backends[0], token="", entra="cli"),))
    listed = {**token, "azure_openai_backends": Found([], "mitm_config.yaml")}
    assert [1, 0, 0] == [len(warned(one, found)) for one, found in ((entra, token), (chosen, token), (entra, listed))]


@pytest.mark.parametrize(
    "url, where, lines",
    [
        ("postgresql://proxy:sesame@db/usage", "--set", 1),
        ("postgresql://proxy:sesame@db/usage", "mitm_config.yaml", 0),
        ("postgresql://proxy@db/usage", "--set", 0),
        ("sqlite:///usage.db", "--set", 0),
    ],
)
def test_a_password_on_the_command_line(url: str, where: str, lines: int) -> None:
    """The password of a ledger on the command line causes a warning, because the process list shows it."""
    (*found,) = warned(dataclasses.replace(settings("https://r"), ledger=url), {"azure_openai_ledger": Found(url, where)})
    assert lines == len(found)
    assert "sesame" not in str(found)


@pytest.mark.parametrize(
    "url, where, lines",
    [("redis://:sesame@cache", "--set", 1), ("redis://:sesame@cache", "mitm_config.yaml", 0), ("redis://cache", "--set", 0)],
)
def test_a_password_of_the_shared_state(url: str, where: str, lines: int) -> None:
    """The password of the shared state on the command line causes a warning too."""
    (*found,) = warned(dataclasses.replace(settings("https://r"), shared_state=url), {"azure_openai_shared_state": Found(url, where)})
    assert lines == len(found)
    assert "sesame" not in str(found)


@pytest.mark.parametrize("endpoint, lines", [("https://r", 1), ("http://localhost", 0)])
def test_no_verification(endpoint: str, lines: int) -> None:
    """Disabled verification causes a warning only for HTTPS addresses."""
    assert lines == len(warned(settings(endpoint), ssl_insecure=True))


def test_a_file_that_others_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that other users may change causes a warning with the reason."""
    file = tmp_path / "mitm_config.yaml"
    monkeypatch.setattr(file_trust, "doubts", lambda path: "the group staff may write it" if path == file else None)
    assert [f"{file}: the group staff may write it. A user who can change it can redirect the key."] == warned(
        settings("https://r"), file=file
    )
    assert [] == warned(settings("https://r"), file=tmp_path / "other")


@pytest.mark.parametrize(
    "name, near",
    [
        ("AZURE_OPENAI_TOKN", "AZURE_OPENAI_TOKEN"),
        ("AZURE_OPENAI_API_VERSION", "AZURE_OPENAI_APIVERSION"),
        ("azure_openai_endpoints", "AZURE_OPENAI_ENDPOINT"),
        ("AZURE_OPENAI_TOKEN", ""),
        ("AZURE_OPENAI_TOKEN_2", ""),
        ("AZURE_OPENAI_PROXY_PORT", ""),  # Kubernetes sets it for a service of this name
        ("AZURE_OPENAI_PROXY_SERVICE_HOST", ""),
        ("AZURE_OPENAI_AD_TOKEN", ""),
        ("AZURE_OPENAI_DEPLOYMENT", ""),
        ("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME", ""),
        ("OPENAI_API_KEY", ""),
    ],
)
def test_a_variable_that_is_nearly_one_of_ours(name: str, near: str) -> None:
    """A probably misspelled variable causes a warning without its value, and variables of other programs do not."""
    lines = list(startup_warnings.unread({name: "sesame"}))
    assert ([f"The environment variable {name} is not read: did you mean {near}?"] if near else []) == lines


@pytest.mark.parametrize(
    ("environ", "modes", "lines"),
    [
        ({}, ["regular"], 0),
        ({"HTTPS_PROXY": "http://user:secret@proxy.example:3128/", "ALL_PROXY": "x"}, ["regular"], 1),
        ({"all_proxy": "socks5://127.0.0.1:1080"}, ["regular", "socks5"], 1),
        ({"https_proxy": "http://localhost:3128"}, ["regular"], 1),
        ({"https_proxy": "http://proxy.example:8080"}, ["regular"], 1),
        ({"HTTPS_PROXY": ""}, ["regular"], 0),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, ["regular", "upstream:http://proxy.example:3128"], 0),
        ({"HTTPS_PROXY": "http://127.0.0.1:8080", "https_proxy": "http://localhost:8080"}, ["regular"], 0),
    ],
)
def test_a_proxy_that_is_ignored(environ: dict[str, str], modes: list[str], lines: int) -> None:
    """It is said once, without its password, with the way to go through it; not where that is done, and not of the proxy itself."""
    said = list(startup_warnings.ignored_proxy(environ, modes, None))
    assert lines == len(said)
    assert all("--mode upstream:" in line and "secret" not in line for line in said)
