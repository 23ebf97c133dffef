"""The effective configuration: defaults, backends, and the line that describes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from mitmproxy.options import Options

from azure_openai_proxy.api.backend import Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config import settings as values
from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.config.settings import Found, Settings
from azure_openai_proxy.errors import SettingsError
from support.configuration import ENDPOINT, KEY, gather, settings

pytestmark = pytest.mark.usefixtures("folder")


def test_apiversion(folder: Path) -> None:
    """The api-version is the configured one, else the one in the endpoint's URL, else the newest dated stable one."""
    pasted = {"AZURE_OPENAI_ENDPOINT": f"{ENDPOINT}/openai/deployments/d/chat/completions?api-version=2024-06-01"}
    cases = [({}, "2024-10-21"), (pasted, "2024-06-01"), ({**pasted, "OPENAI_API_VERSION": "preview"}, "preview")]
    for environ, version in cases:
        assert version == getattr(settings(**environ).backend, "apiversion", None)
    (folder / "mitm_config.yaml").write_text("azure_openai_apiversion: 2024-02-01  # a date, for YAML")
    assert "2024-02-01" == getattr(settings(**pasted).backend, "apiversion", None)


def test_defaults() -> None:
    """With only an endpoint set, every setting has the default of the table."""
    chosen = settings()
    assert Settings() == dataclasses.replace(values.resolve({"azure_openai_proxy_mode": Found("openai", "")}), mode="azure")
    assert (Base("https", "r.openai.azure.com", 443), "") == (getattr(chosen.backend, "base", None), chosen.token)
    assert ("azure", None, frozenset({"api.openai.com"}), True, 256 * 1024 * 1024) == (
        chosen.mode,
        chosen.address,
        chosen.hosts,
        chosen.normalize,
        chosen.max_body,
    )
    assert Base("https", "api.openai.com", 443) == chosen.passthrough_endpoint


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("azure_openai_normalize: false", "normalize", False),
        ("azure_openai_proxy_address: 8123", "address", Address("", 8123)),
        ("azure_openai_max_body: 5", "max_body", 5),
        ("azure_openai_hosts: [a.example, 'b.example,c.example']", "hosts", {"api.openai.com", "a.example", "b.example", "c.example"}),
        ("azure_openai_hosts: a.example", "hosts", {"api.openai.com", "a.example"}),
        ("azure_openai_model_mapper: {gpt-4o: mine, 'o*': other}", "mapper", Mapper.parse("gpt-4o=mine,o*=other")),
        ("azure_openai_model_mapper: gpt-4o=mine", "mapper", Mapper.parse("gpt-4o=mine")),
        ("azure_openai_model_mapper: [gpt-4o=mine, o1=other]", "mapper", Mapper.parse("gpt-4o=mine,o1=other")),
    ],
)
def test_values_of_yaml(file: str, field: str, value: object, folder: Path) -> None:
    """YAML's own types, such as dates, numbers and lists, are accepted where they suit the option."""
    (folder / "mitm_config.yaml").write_text(file)
    assert value == getattr(settings(), field)


def test_no_endpoint() -> None:
    """Without an endpoint the error names all three ways to set it, and openai mode needs none."""
    with pytest.raises(SettingsError, match=r"AZURE_OPENAI_ENDPOINT=https://RESOURCE\.openai\.azure\.com, --set .* mitm_config\.yaml"):
        values.resolve({})
    assert values.resolve({"azure_openai_proxy_mode": Found("openai", "--set")}).backend is None


def test_key_in_the_wrong_place() -> None:
    """A key that was also pasted into another setting is masked in that setting's error."""
    with pytest.raises(SettingsError) as caught:
        settings(AZURE_OPENAI_TOKEN=KEY, AZURE_OPENAI_MODEL_MAPPER=KEY)
    assert KEY not in str(caught.value)
    assert "(hidden)" in str(caught.value)


def test_file_of_wrong_types(folder: Path) -> None:
    """A list or a mapping in the place of a string is rejected."""
    for text in ("azure_openai_proxy_mode: {a: b}", "azure_openai_hosts: [1]", "azure_openai_token: true"):
        (folder / "mitm_config.yaml").write_text(f"azure_openai_endpoint: {ENDPOINT}\n{text}")
        with pytest.raises(SettingsError, match=r"\(mitm_config.yaml\): write text"):
            values.resolve(gather()[0])


@pytest.mark.parametrize(
    "environ, line",
    [
        (
            {},
            (
                "azure mode: https://r.openai.azure.com, API version 2024-10-21, "
                "no mappings beside the default, the clients' own keys, mitmproxy's own address"
            ),
        ),
        (
            {"AZURE_OPENAI_TOKEN": KEY, "AZURE_OPENAI_MODEL_MAPPER": "a=b", "AZURE_OPENAI_PROXY_ADDRESS": "[::1]:80"},
            (
                "azure mode: https://r.openai.azure.com, API version 2024-10-21, "
                "1 mapping beside the default, key configured, pages of local origins may use the key, address [::1]:80"
            ),
        ),
        (
            {"AZURE_OPENAI_TOKEN": KEY, "AZURE_OPENAI_ALLOWED_ORIGINS": "*"},
            (
                "azure mode: https://r.openai.azure.com, API version 2024-10-21, "
                "no mappings beside the default, key configured, pages of any origin may use the key, mitmproxy's own address"
            ),
        ),
        (
            {"AZURE_OPENAI_PROXY_MODE": "openai", "AZURE_OPENAI_PROXY_ADDRESS": ":80"},
            "openai mode: all requests go to https://api.openai.com unchanged, address :80",
        ),
    ],
)
def test_summary(environ: dict[str, str], line: str) -> None:
    """The effective configuration is logged in one line without the key."""
    assert line == values.summary(settings(**environ))


def test_settings_hide_the_key() -> None:
    """The repr of the settings does not contain the key."""
    assert KEY not in repr(settings(AZURE_OPENAI_TOKEN=KEY))


def backends(text: str, *arguments: str, **environ: str) -> Settings:
    Path("mitm_config.yaml").write_text("azure_openai_backends:\n" + text)
    return values.resolve(gather(*arguments, environ=environ)[0])


TWO = "- {name: a, endpoint: https://a.example, token: '${KEY}', models: {gpt-4o: mine}}\n- {name: b, endpoint: https://b.example}\n"


def test_several_backends() -> None:
    """The file's backends are used, with environment variables expanded, and general settings apply to backends without their own."""
    found = backends(TWO, KEY=KEY, AZURE_OPENAI_TOKEN="shared", OPENAI_API_VERSION="v1")
    assert [("a", KEY, "v1"), ("b", "shared", "v1")] == [(backend.name, backend.token, backend.apiversion) for backend in found.backends]
    assert (KEY, "shared") == found.tokens
    assert {("a.example", 443), ("b.example", 443)} == found.destinations
    assert ["gpt-4o"] == found.listed.names()
    line = values.summary(found)
    assert "azure mode: a https://a.example, b https://b.example, API version v1" in line
    assert KEY not in line


def test_backends_or_an_endpoint() -> None:
    """An endpoint beside a list of backends is rejected, and so is an invalid list."""
    with pytest.raises(SettingsError, match=r"azure_openai_backends .* is set too: write the endpoint as one of the backends"):
        backends(TWO, KEY=KEY, AZURE_OPENAI_ENDPOINT=ENDPOINT)
    with pytest.raises(SettingsError, match=r"azure_openai_backends \(mitm_config\.yaml\): a: endpoint"):
        backends("- name: a")


def test_resending() -> None:
    """The retry settings are parsed."""
    found = settings(AZURE_OPENAI_MAX_ATTEMPTS="2", AZURE_OPENAI_FIRST_BYTE_TIMEOUT="0.5", AZURE_OPENAI_ENTRA="cli", AZURE_OPENAI_TOKEN=KEY)
    assert (2, 0.5, 10) == (found.max_attempts, found.timeouts.first_byte, found.timeouts.connect)
    assert ("", "cli") == (found.token, found.backends[0].entra)
    assert "Entra ID (cli)" in values.summary(found)


def test_client_secret_without_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error where a token is needed."""
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "CLIENT_CERTIFICATE_PATH"):
        monkeypatch.delenv(f"AZURE_{name}", raising=False)
    environ = {"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_ENTRA": "client_secret"}
    with pytest.raises(SettingsError, match=r"^azure_openai_entra \(environment variable .*\): client_secret needs AZURE_TENANT_ID, "):
        settings(**environ)
    with pytest.raises(SettingsError, match=r"^azure_openai_backends \(.*\): client_secret needs AZURE_TENANT_ID, "):
        backends("- {name: a, endpoint: https://a.example, entra: client_secret}")
    Path("mitm_config.yaml").unlink()
    assert "openai" == settings(**environ, AZURE_OPENAI_PROXY_MODE="openai").mode
    assert "client_secret" == values.resolve(gather(environ=environ)[0], offline=True).backends[0].entra


def test_offline_there_need_be_no_azure() -> None:
    """With --server-replay no endpoint is required, and the line at startup says so."""
    found, _ = gather()
    assert "azure mode, offline: only recorded responses are served" == values.summary(values.resolve(found, offline=True))


@pytest.mark.parametrize(("text", "expected"), [("auto", None), ("off", 0), ("0", 0), ("8m", 8 << 20)])
def test_how_much_is_kept(text: str, expected: int | None) -> None:
    """The size of the store is the configured one, zero, or the default for the tool."""
    kept = settings(AZURE_OPENAI_ENDPOINT="https://r.openai.azure.com", AZURE_OPENAI_KEEP_BODIES=text)
    assert expected == kept.keep_bodies
    for looked_at, suits in ((True, 64 << 20), (False, 0)):
        assert values.kept_bodies(kept, Options(), looked_at=looked_at) == (suits if expected is None else expected)
