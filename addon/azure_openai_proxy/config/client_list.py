"""`azure_openai_clients:` and `azure_openai_client_groups:` in mitm_config.yaml: lists of mappings with `KEYS` and `GROUP_KEYS`."""

from __future__ import annotations

import datetime as dt
import difflib
import re
from typing import TYPE_CHECKING, Any, Literal, cast

from azure_openai_proxy.errors import SettingsError

from . import list_entries
from .backends import parse_key
from .clients import PERIODS, Budget, Client, ClientKey, Group, Limits, digest, parse_expiry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "GROUPS",
    "GROUP_KEYS",
    "KEYS",
    "NAME",
    "Auth",
    "files",
    "parse",
    "parse_auth",
    "parse_groups",
    "parse_unpriced",
]

NAME = "azure_openai_clients"
GROUPS = "azure_openai_client_groups"
_SHARED = ("requests_per_minute", "tokens_per_minute", "max_parallel", "budget_usd", "budget_period")
GROUP_KEYS = ("name", *_SHARED)
KEYS = ("name", "key", "key_file", "key_sha256", "models", *_SHARED, "group", "expires", "backends", "disabled", "unmetered")

_NAME = re.compile(r"[\w.-]{1,100}")
_MOST = 10**12
SHORTEST_KEY = 8
"""Characters. A shorter key is easy to guess, and is not masked in headers of responses, where it may be a word (`api.redaction`)."""

type Auth = Literal["", "required", "optional", "off"]


def parse_auth(text: str) -> Auth:
    if text not in ("", "required", "optional", "off"):
        raise SettingsError("write required, optional or off")
    return cast("Auth", text)


def parse_unpriced(text: str) -> str:
    if text not in ("refuse", "allow"):
        raise SettingsError("write refuse or allow")
    return text


def files(raw: object) -> Iterator[Path]:
    """The key files that the list names. They are watched like the configuration file."""
    return list_entries.files(raw, "key_file")


def parse_groups(raw: object) -> tuple[Group, ...]:
    """Parse the list of groups.

    Raises:
        SettingsError: the message names the group, the error and the valid values.
    """
    groups: dict[str, Group] = {}
    for name, entry in _entries(raw, "group"):
        if name in groups:
            raise SettingsError(f"{name}: there are two groups of this name")
        try:
            list_entries.check_keys(entry, GROUP_KEYS)
            groups[name] = Group(name=name, limits=_limits(entry), budget=_budget(entry))
        except SettingsError as error:
            raise SettingsError(f"{name}: {error}") from None
    return tuple(groups.values())


def parse(raw: object, groups: Iterable[Group], backends: Iterable[str]) -> tuple[Client, ...]:
    """Parse the list of clients. `backends`: the names of the configured ones.

    Raises:
        SettingsError: the message names the client, the error and the valid values, and contains no key.
    """
    clients: dict[str, Client] = {}
    owners: dict[bytes, str] = {}
    known_groups, known_backends = [group.name for group in groups], list(backends)
    for name, entry in _entries(raw, "client"):
        if name in clients:
            raise SettingsError(f"{name}: there are two clients of this name")
        try:
            client = _client(name, entry, known_groups, known_backends)
        except SettingsError as error:
            raise SettingsError(f"{name}: {list_entries.without_secret(str(error), entry.get('key'))}") from None
        if (owner := owners.setdefault(client.keys[0].sha256, name)) != name:
            raise SettingsError(f"{name}: it has the key of {owner}: give each client a key of its own")
        clients[name] = client
    return tuple(clients.values())


def _entries(raw: object, what: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise SettingsError(f"write a list of {what}s, each with a name" + (" and a key" if what == "client" else ""))
    for number, entry in enumerate(raw, 1):
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SettingsError(f"{what} {number}: write a name of letters, digits, dots and hyphens")
        yield name, entry


def _client(name: str, entry: Mapping[str, Any], groups: list[str], backends: list[str]) -> Client:
    list_entries.check_keys(entry, KEYS)
    group = _text(entry, "group")
    if group and group not in groups:
        near = difflib.get_close_matches(group, groups, 1, 0.5)
        raise SettingsError(f"group: there is no group {group}: " + (f"did you mean {near[0]}?" if near else f"add it to {GROUPS}"))
    allowed = _texts(entry, "backends")
    for one in allowed:
        if one not in backends:
            raise SettingsError(f"backends: there is no backend {one}: write {', '.join(backends)}")
    return Client(
        name=name,
        keys=(ClientKey(_key(entry)),),
        models=_texts(entry, "models"),
        limits=_limits(entry),
        budget=_budget(entry),
        group=group,
        expires=_expires(entry.get("expires")),
        backends=allowed,
        disabled=_boolean(entry, "disabled"),
        unmetered=_boolean(entry, "unmetered"),
    )


def _key(entry: Mapping[str, Any]) -> bytes:
    given = [name for name in ("key", "key_file", "key_sha256") if entry.get(name) is not None]
    if len(given) != 1:
        raise SettingsError(f"{' and '.join(given)}: write one of them" if given else "write its key: key, key_file or key_sha256")
    if hashed := _text(entry, "key_sha256"):
        if not re.fullmatch(r"(?:sha256:)?[0-9a-fA-F]{64}", hashed):
            raise SettingsError("key_sha256: write the SHA-256 of the key, 64 hexadecimal digits")
        return bytes.fromhex(hashed.removeprefix("sha256:"))
    text = _text(entry, "key")
    if path := _text(entry, "key_file"):
        text = list_entries.read_key_file(path, "key_file")
    try:
        key = parse_key(text)
    except SettingsError as error:
        raise SettingsError(f"{given[0]}: {error}") from None
    if not key:
        raise SettingsError(f"{given[0]}: it is empty")
    if len(key) < SHORTEST_KEY:
        raise SettingsError(f"{given[0]}: it is too short: write a random key of at least {SHORTEST_KEY} characters")
    return digest(key)


def _limits(entry: Mapping[str, Any]) -> Limits:
    return Limits(*(_number(entry, name) for name in Limits._fields))


def _number(entry: Mapping[str, Any], name: str) -> int | None:
    value = entry.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST):
        raise SettingsError(f"{name}: write a whole number from 1")
    return value


def _budget(entry: Mapping[str, Any]) -> Budget | None:
    usd, period = entry.get("budget_usd"), _text(entry, "budget_period")
    if period and period not in PERIODS:
        raise SettingsError(f"budget_period: write {', '.join(PERIODS[:-1])} or {PERIODS[-1]}")
    if usd is None:
        if period:
            raise SettingsError("budget_period: write budget_usd too")
        return None
    if not isinstance(usd, int | float) or isinstance(usd, bool) or not 0 <= usd <= _MOST:
        raise SettingsError("budget_usd: write an amount in USD, as in 50 or 2.5")
    return Budget(float(usd), period or "month")


def _expires(value: object) -> dt.datetime | None:
    if value is None:
        return None
    try:
        return parse_expiry(value.isoformat() if isinstance(value, dt.date) else str(value).strip())  # YAML parses 2026-12-31 as a date
    except (ValueError, OverflowError):
        raise SettingsError("expires: write a date, as in 2026-12-31 or 2026-12-31T18:00:00Z") from None


def _boolean(entry: Mapping[str, Any], name: str) -> bool:
    value = entry.get(name)
    if value is not None and not isinstance(value, bool):  # 1 and 0 equal True and False
        raise SettingsError(f"{name}: write true or false")
    return value is True


def _texts(entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = entry.get(name)
    items = [value] if isinstance(value, str) else value
    if items is None:
        return ()
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
        raise SettingsError(f"{name}: write a list of names")
    return tuple(items)


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{name}: write text; in YAML, between quotes")
    return value.strip()
