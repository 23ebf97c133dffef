"""The list `azure_openai_backends` in the configuration file."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config import backends as backends_config
from azure_openai_proxy.config.list_entries import LONGEST_KEY
from azure_openai_proxy.errors import SettingsError

A = {"name": "a", "endpoint": "https://a.openai.azure.com"}


def parse(*entries: Any, apiversion: str | None = None, token: str = "") -> tuple[Backend, ...]:
    return backends_config.parse(list(entries), apiversion=apiversion, default_version="2024-10-21", token=token)


def test_a_token_file_without_a_key(tmp_path: Path) -> None:
    """An empty file is refused, and one with more than a key is not read to its end."""
    file = tmp_path / "key"
    file.touch()
    with pytest.raises(SettingsError, match=r"a: token_file: .* is empty"):
        parse(A | {"token_file": str(file)})
    file.write_text("x" * (LONGEST_KEY + 1))
    with pytest.raises(SettingsError, match=r"a: token_file: .* is too large for a file with a key alone"):
        parse(A | {"token_file": str(file)})


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_world_writable_token_file(tmp_path: Path) -> None:
    """A token file that all users may write is rejected, because another user could replace the key and read its requests."""
    file = tmp_path / "key"
    file.write_text("secret")
    file.chmod(0o666)
    with pytest.raises(SettingsError, match=r"a: token_file: .* is not used: all users may write it"):
        parse(A | {"token_file": str(file)})
    file.chmod(0o644)
    assert "secret" == parse(A | {"token_file": str(file)})[0].token


def test_minimal_backend() -> None:
    """A backend needs a name and an endpoint, and everything else has the default or the general setting."""
    (backend,) = parse(A)
    assert ("a", Base("https", "a.openai.azure.com", 443), "", "2024-10-21") == (
        backend.name,
        backend.base,
        backend.token,
        backend.apiversion,
    )
    assert (0, 1, None, "") == (backend.priority, backend.weight, backend.models, backend.entra)
    (backend,) = parse(A, apiversion="v1", token="shared")
    assert ("v1", "shared") == (backend.apiversion, backend.token)


def test_zone() -> None:
    """A backend has the data zone that is written, in lower case, and none by default."""
    assert ["", "eu"] == [backend.zone for backend in parse(A, A | {"name": "b", "zone": "EU"})]


def test_kind() -> None:
    """Provisioned throughput or standard, which is the default; within a priority the former comes first."""
    kinds = [parse(A | kind)[0].kind for kind in ({}, {"kind": "Standard"}, {"kind": "provisioned"})]
    assert ["standard", "standard", "provisioned"] == kinds
    assert parse(A | {"kind": "provisioned"})[0].order < parse(A)[0].order < parse(A | {"kind": "provisioned", "priority": 1})[0].order


def test_full_backend(tmp_path: Path) -> None:
    """Each key has its effect, and a backend's own api-version precedes the one in its URL and the general one."""
    key = tmp_path / "key"
    key.write_text("of-the-file\n")
    first, second, third = parse(
        A | {"token": "own", "apiversion": dt.date(2024, 6, 1), "priority": 1, "weight": 3, "models": {"gpt-4o": "mine"}},
        A | {"name": "b", "token_file": str(key), "models": ["gpt-4o", "gpt-4*"]},
        {"name": "c", "endpoint": "https://c.openai.azure.com/openai/v1", "entra": "cli", "scope": "s"},
        token="shared",
    )
    assert ("own", "2024-06-01", 1, 3, "mine") == (
        first.token,
        first.apiversion,
        first.priority,
        first.weight,
        first.deployment("gpt-4o", Mapper(), native=False),
    )
    assert ("of-the-file", True, True, False) == (second.token, second.serves("gpt-4o"), second.serves("gpt-4.1"), second.serves("o1"))
    assert ("", "cli", "s", "v1") == (third.token, third.entra, third.scope, third.apiversion)


@pytest.mark.parametrize(
    "entry, right",
    [
        ({"name": None}, "backend 1: write a name"),
        ({"name": "a b"}, "backend 1: write a name"),
        ({"endpoint": None}, "a: endpoint: write text"),
        ({"endpoint": ""}, "a: endpoint: write text"),
        ({"endpoint": "ftp://x"}, "a: ftp:// is not supported"),
        ({"endpiont": "x"}, "a: endpiont is not a key: did you mean endpoint?"),
        ({"zzz": "x"}, "a: zzz is not a key: write name, endpoint"),
        ({"sk-0123456789-0123456789-0123456789-012345": "x"}, "a: one of its keys is unknown: write name"),
        ({"token": "x", "entra": "cli"}, "a: token and entra: write one of them"),
        ({"token": "x y"}, "a: token: it has a space"),
        ({"token": "'x'"}, "a: token: it is in quotes"),
        ({"token": 7}, "a: token: write text"),
        ({"token_file": "/nowhere/key"}, "a: token_file: /nowhere/key cannot be read"),
        ({"token_file": "0123456789abcdef0123456789abcdef"}, "a: token_file: the file cannot be read"),
        ({"token_file": "/dev/null"}, "a: token_file: /dev/null cannot be read: it is not a regular file"),
        ({"token_file": "/"}, "a: token_file: / cannot be read: it is a directory"),
        ({"entra": "magic"}, "a: entra: write default, managed_identity"),
        ({"apiversion": "new"}, "a: it is not an API version"),
        ({"priority": -1}, "a: priority: write a whole number from 0"),
        ({"weight": 0}, "a: weight: write a whole number from 1"),
        ({"weight": True}, "a: weight: write a whole number from 1"),
        ({"kind": "reserved"}, "a: kind: write provisioned or standard"),
        ({"zone": "E U"}, "a: zone: write the data zone of its deployments, as in us or eu"),
        ({"zone": 1}, "a: zone: write text"),
        ({"models": "gpt-4o"}, "a: models: write a list"),
        ({"models": {}}, "a: models: write a list"),
        ({"models": {"gpt-4o": 4}}, "a: models: write a list"),
        ({"token": "0123456789", "endpoint": "https://x/#0123456789"}, "a: it contains a fragment"),
    ],
)
def test_invalid_entries(entry: dict[str, Any], right: str) -> None:
    """An invalid entry is rejected in one line that names the backend and the valid values, without any key."""
    with pytest.raises(SettingsError) as caught:
        parse(A | entry)
    assert str(caught.value).startswith(right)
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize(
    "environ, missing",
    [
        ({}, "AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET"),
        ({"AZURE_CLIENT_SECRET": "s", "AZURE_TENANT_ID": ""}, "AZURE_TENANT_ID, AZURE_CLIENT_ID"),
        ({"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}, "AZURE_CLIENT_SECRET"),
        ({"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"}, ""),
        ({"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_CERTIFICATE_PATH": "c.pem"}, ""),
    ],
)
def test_a_client_secret(environ: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables from which azure-identity makes the credential must be set."""
    for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET", "CLIENT_CERTIFICATE_PATH"):
        monkeypatch.delenv(f"AZURE_{name}", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if missing:
        with pytest.raises(SettingsError, match=f"^client_secret needs {missing} in the environment"):
            backends_config.check_client_secret(parse(A | {"entra": "client_secret"}))
    else:
        backends_config.check_client_secret(parse(A | {"entra": "client_secret"}))
    backends_config.check_client_secret(parse(A))


@pytest.mark.parametrize("raw", [None, {}, [], ["a"], "a"])
def test_invalid_lists(raw: object) -> None:
    """A value that is not a list of mappings is rejected."""
    with pytest.raises(SettingsError, match="write a list of backends"):
        backends_config.parse(raw, apiversion=None, default_version="v1", token="")


def test_a_name_is_given_once() -> None:
    """A duplicate name is rejected."""
    with pytest.raises(SettingsError, match="a: there are two backends of this name"):
        parse(A, A)


def test_variables() -> None:
    """`${NAME}` is replaced by the environment variable, and an unset variable is an error with its name."""
    raw = [A | {"token": "${KEY}", "priority": 1}, "odd"]
    assert [A | {"token": "sesame", "priority": 1}, "odd"] == backends_config.expand(raw, {"KEY": "sesame\n"}, "the file")
    assert "odd" == backends_config.expand("odd", {}, "the file")
    with pytest.raises(SettingsError, match=r"azure_openai_backends \(the file\): the environment variable KEY is not set"):
        backends_config.expand(raw, {"KEY": " "}, "the file")


def test_files_to_watch() -> None:
    """The token files of the list are watched."""
    assert [Path("/k")] == list(backends_config.files([A, {"token_file": "/k"}, {"token_file": 7}, "odd"]))
    assert [] == list(backends_config.files(None))
