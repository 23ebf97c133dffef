"""`azure_openai_backends:` in mitm_config.yaml: a list of Azure resources, each a mapping of the keys in `KEYS`."""

from __future__ import annotations

import datetime as dt
import os
import re
from typing import TYPE_CHECKING, Any, Literal

from azure_openai_proxy.api.backend import Backend, parse_apiversion, parse_endpoint
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.errors import SettingsError

from . import extras, list_entries
from .prices import ZONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["ENTRA", "KEYS", "NAME", "check_client_secret", "expand", "files", "parse", "parse_entra", "parse_key"]

NAME = "azure_openai_backends"
KEYS = ("name", "endpoint", "token", "token_file", "entra", "scope", "apiversion", "priority", "weight", "kind", "zone", "models")
ENTRA = ("default", "managed_identity", "workload_identity", "client_secret", "cli")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def files(raw: object) -> Iterator[Path]:
    """The token files that the list names. They are watched like the configuration file."""
    return list_entries.files(raw, "token_file")


def expand(raw: object, environ: Mapping[str, str], where: str, name: str = NAME) -> object:
    """Replace each `${NAME}` in the list by the environment variable.

    Raises:
        SettingsError: a variable is not set. `where` names the file in the message.
    """

    def variable(match: re.Match[str]) -> str:
        if not (value := environ.get(match[1], "").strip()):
            raise SettingsError(f"{name} ({where}): the environment variable {match[1]} is not set")
        return value

    def text(value: object) -> object:
        return _VARIABLE.sub(variable, value) if isinstance(value, str) else value

    if not isinstance(raw, list):
        return raw
    return [{key: text(value) for key, value in entry.items()} if isinstance(entry, dict) else entry for entry in raw]


def parse(raw: object, *, apiversion: str | None, default_version: str, token: str) -> tuple[Backend, ...]:
    """Parse the list. `apiversion` and `token` apply to backends that have none of their own.

    Raises:
        SettingsError: the message names the backend, the error and the valid values, and contains no token.
    """
    if not isinstance(raw, list) or not raw or not all(isinstance(entry, dict) for entry in raw):
        raise SettingsError("write a list of backends, each with a name and an endpoint")
    backends: dict[str, Backend] = {}
    for number, entry in enumerate(raw, 1):
        name = entry.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,40}", name):
            raise SettingsError(f"backend {number}: write a name of letters, digits, dots and hyphens")
        if name in backends:
            raise SettingsError(f"{name}: there are two backends of this name")
        try:
            backends[name] = _backend(name, entry, apiversion, default_version, token)
        except SettingsError as error:
            raise SettingsError(f"{name}: {list_entries.without_secret(str(error), entry.get('token'))}") from None
    return tuple(backends.values())


def _backend(name: str, entry: Mapping[str, Any], apiversion: str | None, default_version: str, token: str) -> Backend:
    list_entries.check_keys(entry, KEYS)
    base, pasted = parse_endpoint(_text(entry, "endpoint", required=True))
    own = _text(entry, "apiversion")
    entra = parse_entra(_text(entry, "entra"))
    key = _token(entry)
    return Backend(
        name=name,
        base=base,
        token="" if entra else key or token,
        apiversion=parse_apiversion(own) if own else apiversion or pasted or default_version,
        priority=_number(entry, "priority", 0, 0),
        weight=_number(entry, "weight", 1, 1),
        kind=_kind(_text(entry, "kind")),
        models=_models(entry.get("models")),
        entra=entra,
        scope=_text(entry, "scope"),
        zone=_zone(_text(entry, "zone")),
    )


def parse_entra(text: str) -> str:
    if text and text not in ENTRA:
        raise SettingsError(f"entra: write {', '.join(ENTRA[:-1])} or {ENTRA[-1]}")
    if text:
        extras.require("entra", "entra")
    return text


def check_client_secret(backends: Iterable[Backend]) -> None:
    """Check the variables of `client_secret`, which azure-identity reads from the environment.

    It accepts a certificate in place of the secret.

    Raises:
        SettingsError: one of them is not set.
    """
    if all(backend.entra != "client_secret" for backend in backends):
        return
    secret = "AZURE_CLIENT_CERTIFICATE_PATH" if os.environ.get("AZURE_CLIENT_CERTIFICATE_PATH") else "AZURE_CLIENT_SECRET"
    if missing := [name for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", secret) if not os.environ.get(name)]:
        raise SettingsError(f"client_secret needs {', '.join(missing)} in the environment of the proxy")


def parse_key(text: str) -> str:
    if text[:1] in ("'", '"'):
        raise SettingsError("it is in quotes: write it without quotes (docker's --env-file keeps quotes)")
    if not re.fullmatch(r"[\x21-\x7e]*", text):
        raise SettingsError("it has a space or another character that is invalid in a key: copy the key alone, in one line")
    return text


def _token(entry: Mapping[str, Any]) -> str:
    given = [key for key in ("token", "token_file", "entra") if entry.get(key)]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)}: write one of them")
    if path := _text(entry, "token_file"):
        text = list_entries.read_key_file(path, "token_file")
        if not text:
            raise SettingsError(f"token_file: {path} is empty")
    else:
        text = _text(entry, "token")
    try:
        return parse_key(text)
    except SettingsError as error:
        raise SettingsError(f"token: {error}") from None


def _text(entry: Mapping[str, Any], key: str, *, required: bool = False) -> str:
    value = entry.get(key)
    if value is None and not required:
        return ""
    if isinstance(value, dt.date):
        value = value.isoformat()  # YAML parses 2024-10-21 as a date
    if not isinstance(value, str) or (required and not value):
        raise SettingsError(f"{key}: write text; in YAML, between quotes")
    return value.strip()


def _zone(text: str) -> str:
    if text and not ZONE.fullmatch(text.lower()):
        raise SettingsError("zone: write the data zone of its deployments, as in us or eu, or leave it out for global ones")
    return text.lower()


def _kind(text: str) -> Literal["provisioned", "standard"]:
    match text.lower():
        case "provisioned":
            return "provisioned"
        case "" | "standard":
            return "standard"
    raise SettingsError("kind: write provisioned or standard")


def _number(entry: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = entry.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{key}: write a whole number from {least}")
    return value


def _models(raw: object) -> Mapper | None:
    """Parse a list of names or a mapping of names to deployments."""
    if raw is None:
        return None
    pairs = {name: name for name in raw} if isinstance(raw, list) and all(isinstance(name, str) for name in raw) else raw
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(text, str) for pair in pairs.items() for text in pair):
        raise SettingsError("models: write a list of names, or a mapping of names to deployments")
    return Mapper.parse("\n".join(f"{model}={deployment}" for model, deployment in pairs.items()))
