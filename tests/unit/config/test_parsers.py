"""The values that each option accepts, and the error for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.api.backend import Base
from azure_openai_proxy.api.endpoints import RETIRED
from azure_openai_proxy.config import settings as values
from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.errors import SettingsError
from support.configuration import ENDPOINT, KEY, gather, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_openai_proxy.config.settings import Settings

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    "name, text, field, value",
    [
        ("azure_openai_proxy_mode", "OpenAI", "mode", "openai"),
        ("azure_openai_proxy_mode", "AZURE", "mode", "azure"),
        ("azure_openai_proxy_address", "127.0.0.1:8080", "address", Address("127.0.0.1", 8080)),
        ("azure_openai_proxy_address", ":8080", "address", Address("", 8080)),
        ("azure_openai_proxy_address", "0", "address", Address("", 0)),
        ("azure_openai_proxy_address", "[::1]:65535", "address", Address("::1", 65535)),
        ("azure_openai_hosts", "API.example.com, b.example,", "hosts", frozenset({"api.openai.com", "api.example.com", "b.example"})),
        ("azure_openai_normalize", "0", "normalize", False),
        ("azure_openai_normalize", "Yes", "normalize", True),
        ("azure_openai_max_body", "1000", "max_body", 1000),
        ("azure_openai_session_affinity", "Off", "session_affinity", False),
        ("azure_openai_affinity_timeout", "60", "affinity_timeout", 60.0),
        ("azure_openai_affinity_sessions", "5", "affinity_sessions", 5),
        ("azure_openai_lost_items", "drop", "drop_lost_items", True),
        ("azure_openai_max_body", "256MB", "max_body", 256 << 20),
        ("azure_openai_max_body", "3 KiB", "max_body", 3 << 10),
        ("azure_openai_max_body", "1g", "max_body", 1 << 30),
        ("azure_openai_map_batch_files", "true", "map_batch_files", True),
        ("azure_openai_discover_models", "true", "discover_models", True),
        ("azure_openai_moderations_unflagged", "true", "moderations_unflagged", True),
        ("azure_openai_replace_apiversions", "Retired,2024-02-01", "replace_apiversions", RETIRED | {"2024-02-01"}),
        ("azure_openai_replace_apiversions", "2024-02-15-PREVIEW", "replace_apiversions", frozenset({"2024-02-15-preview"})),
        ("azure_openai_allowed_destinations", "OFF", "allowed_destinations", "off"),
        ("azure_openai_shutdown_timeout", "5", "shutdown_timeout", 5.0),
        ("azure_openai_shutdown_timeout", "0.5s", "shutdown_timeout", 0.5),
        ("azure_openai_access_log", "-", "access_log", "-"),
        ("azure_openai_access_log", "logs/access.log", "access_log", str(Path("logs/access.log"))),
        ("azure_openai_metrics", "127.0.0.1:9464", "metrics", Address("127.0.0.1", 9464)),
        ("azure_openai_metrics_series", "50", "metrics_series", 50),
        ("azure_openai_passthrough_endpoint", "http://127.0.0.1:9/v1/", "passthrough_endpoint", Base("http", "127.0.0.1", 9)),
    ],
)
def test_values(name: str, text: str, field: str, value: object) -> None:
    """Each option accepts the values that its help text names."""
    assert value == getattr(settings("--set", f"{name}={text}"), field)
    assert value == getattr(settings(**{name.upper(): text}), field)


@pytest.mark.parametrize(
    "name, text, right",
    [
        ("azure_openai_endpoint", "ftp://x.example", "https://RESOURCE.openai.azure.com"),
        ("azure_openai_token", "two words", "in one line"),
        ("azure_openai_token", "clé", "in one line"),
        ("azure_openai_token", f'"{KEY}"', "write it without quotes"),
        ("azure_openai_apiversion", "latest", "YYYY-MM-DD"),
        ("azure_openai_model_mapper", "gpt-4o", "model=deployment"),
        ("azure_openai_proxy_mode", "both", "azure or openai"),
        ("azure_openai_proxy_address", "127.0.0.1", "HOST:PORT"),
        ("azure_openai_proxy_address", "::1:8080", "HOST:PORT"),
        ("azure_openai_proxy_address", ":65536", "HOST:PORT"),
        ("azure_openai_proxy_address", "a b:1", "host name"),
        ("azure_openai_hosts", "https://x.example", "without https://"),
        ("azure_openai_allowed_origins", "chat.example.com", "scheme://host"),
        ("azure_openai_allowed_origins", "*,https://chat.example.com", "a * alone"),
        ("azure_openai_normalize", "maybe", "true or false"),
        ("azure_openai_max_body", "0", "256m"),
        ("azure_openai_max_body", "lots", "256m"),
        ("azure_openai_allowed_destinations", "all", "any, local, public or off"),
        ("azure_openai_shutdown_timeout", "soon", "as in 30"),
        ("azure_openai_pool_size", "-1", "from 0 to 99999"),
        ("azure_openai_session_affinity", "on", "auto or off"),
        ("azure_openai_affinity_timeout", "0", "above 0"),
        ("azure_openai_affinity_sessions", "0", "from 1 to 9999999"),
        ("azure_openai_lost_items", "keep", "refuse or drop"),
        ("azure_openai_access_log", "a\0b", "the path of a file"),
        ("azure_openai_ledger", "usage.db", "sqlite:///usage.db or postgresql"),
        ("azure_openai_ledger", "mysql://u:p@h/d", "sqlite:///usage.db or postgresql"),
        ("azure_openai_metrics", "localhost", "HOST:PORT"),
        ("azure_openai_metrics_series", "0", "from 1 to 99999"),
        ("azure_openai_prices", "/nowhere/prices.yaml", "cannot be read"),
        ("azure_openai_passthrough_endpoint", "https://u:p@x.example", "a user name or password"),
    ],
)
def test_refused(name: str, text: str, right: str, folder: Path) -> None:
    """An invalid value is reported in one line with the setting, its source and the valid values, for every source."""
    where: dict[str, Callable[[], Settings]] = {
        "--set": lambda: settings("--set", f"{name}={text}"),
        f"environment variable {name.upper()}": lambda: settings(**{name.upper(): text}),
        "mitm_config.yaml": lambda: values.resolve(gather()[0]),
    }
    for place, read in where.items():
        if place == "mitm_config.yaml":
            (folder / place).write_text(json.dumps({"azure_openai_endpoint": ENDPOINT, name: text}))  # JSON is YAML
        with pytest.raises(SettingsError) as caught:
            read()
        assert str(caught.value).startswith(f"{name} ({place}): ")
        assert right in str(caught.value)
        assert "\n" not in str(caught.value)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "variable, value, right",
    [
        ("AZURE_OPENAI_MAX_ATTEMPTS", "0", "from 1 to 99"),
        ("AZURE_OPENAI_CONNECT_TIMEOUT", "0", "above 0"),
        ("AZURE_OPENAI_CHUNK_TIMEOUT", "soon", "a number of seconds"),
        ("AZURE_OPENAI_ENTRA", "magic", "managed_identity"),
    ],
)
def test_resending_refused(variable: str, value: str, right: str) -> None:
    """An invalid retry setting is rejected with the valid values."""
    with pytest.raises(SettingsError, match=right):
        settings(**{variable: value})


@pytest.mark.parametrize("url", ["", "redis://cache", "redis://cache:6380/2", "rediss://user:pass@cache:6380", "redis://[::1]:6379/"])
def test_the_url_of_a_shared_state(url: str) -> None:
    """The URL of a Redis server has a host, and may have a port, a user, a password and the number of a database."""
    assert url == settings(AZURE_OPENAI_SHARED_STATE=url).shared_state


@pytest.mark.parametrize(
    "url",
    [
        "cache:6379",
        "http://cache",
        "redis://",
        "redis://cache/name",
        "redis://cache:0",
        "redis://cache:x",
        "redis://cache?db=1",
        "redis://ä",
    ],
)
def test_a_bad_url_of_a_shared_state(url: str) -> None:
    """Another URL is refused with the right form."""
    with pytest.raises(SettingsError, match=r"AZURE_OPENAI_SHARED_STATE\): write redis://HOST:PORT or, with TLS"):
        settings(AZURE_OPENAI_SHARED_STATE=url)


def test_the_policy_without_the_shared_state() -> None:
    """The policy is one of two words."""
    assert "refuse" == settings(AZURE_OPENAI_SHARED_STATE_FAILURE="refuse").shared_state_failure
    with pytest.raises(SettingsError, match="write local or refuse"):
        settings(AZURE_OPENAI_SHARED_STATE_FAILURE="open")
