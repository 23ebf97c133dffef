"""Parsers of option values. Each raises SettingsError with the valid values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import urlsplit

from azure_openai_proxy.api.backend import Base, parse_apiversion, parse_base, parse_endpoint, parse_host
from azure_openai_proxy.api.endpoints import RETIRED
from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

from . import extras

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = [
    "OPENAI",
    "REPLAY_IGNORED",
    "Address",
    "AllowedDestinations",
    "address",
    "affinity_sessions",
    "allowed_destinations",
    "count",
    "endpoint",
    "file",
    "hosts",
    "kept",
    "ledger",
    "lost_items",
    "metrics_address",
    "metrics_series",
    "mode",
    "openai",
    "pool_size",
    "seconds",
    "session_affinity",
    "shared_state",
    "shared_state_failure",
    "size",
    "timeout",
    "versions",
]

REPLAY_IGNORED = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "event_id",
    "messages.*.tool_call_id",
    "messages.*.tool_calls.*.id",
    "dates",
    "uuids",
)
"""Ignored by default: members by path (`*` is any item of a list), and `dates` and `uuids` in strings."""

type AllowedDestinations = Literal["any", "local", "public", "off"]
OPENAI = Base("https", "api.openai.com", 443)


class Address(NamedTuple):
    """A listen address. Host "" is every interface, port 0 a port chosen by the kernel."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoint(text: str) -> tuple[Base, str | None] | None:
    return parse_endpoint(text) if text else None


def mode(text: str) -> Literal["azure", "openai"]:
    match text.lower():
        case "azure":
            return "azure"
        case "openai":
            return "openai"
    raise SettingsError("write azure or openai")


def address(text: str) -> Address | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise SettingsError("write HOST:PORT, :PORT or PORT, as in 127.0.0.1:8080 or [::1]:8080")
    return Address(parse_host(host) if host else "", int(port))


def metrics_address(text: str) -> Address | None:
    found = address(text)
    if found:
        extras.require("metrics")
    return found


def metrics_series(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise SettingsError("write a whole number from 1 to 99999")
    return int(text)


def hosts(names: Sequence[str]) -> frozenset[str]:
    try:
        return frozenset(map(parse_host, names)) | {OPENAI.host}
    except SettingsError:
        raise SettingsError("write host names without https:// and port, separated by commas, as in api.example.com") from None


def size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)\s*([kmg]?)i?b?", text.lower())
    if match is None or not int(match[1]):
        raise SettingsError("write a number of bytes, or one with k, m or g, as in 256m")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


def versions(names: Sequence[str]) -> frozenset[str]:
    named = {name.lower() for name in names}
    return frozenset(map(parse_apiversion, named - {"retired"})) | (RETIRED if "retired" in named else frozenset())


def allowed_destinations(text: str) -> AllowedDestinations:
    choices: dict[str, AllowedDestinations] = {"any": "any", "local": "local", "public": "public", "off": "off"}
    if (chosen := choices.get(text.lower())) is None:
        raise SettingsError("write any, local, public or off")
    return chosen


def seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?s?", text):
        raise SettingsError("write a number of seconds, as in 30")
    return float(text.removesuffix("s"))


def timeout(text: str) -> float:
    if not (allowed := seconds(text)):
        raise SettingsError("write a number of seconds above 0, as in 30")
    return allowed


def count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]?", text):
        raise SettingsError("write a whole number from 1 to 99")
    return int(text)


def session_affinity(text: str) -> bool:
    if text.lower() not in ("auto", "off"):
        raise SettingsError("write auto or off")
    return text.lower() == "auto"


def lost_items(text: str) -> bool:
    if text.lower() not in ("refuse", "drop"):
        raise SettingsError("write refuse or drop")
    return text.lower() == "drop"


def affinity_sessions(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise SettingsError("write a whole number from 1 to 9999999")
    return int(text)


def pool_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text):
        raise SettingsError("write a whole number from 0 to 99999")
    return int(text)


def kept(text: str) -> int | None:
    return None if text.lower() == "auto" else 0 if text.lower() in ("off", "0") else size(text)


def ledger(text: str) -> str:
    if text:
        extras.require("ledger")
        if not re.match(r"(sqlite|postgres(ql)?)(\+\w+)?://", text):
            raise SettingsError("write sqlite:///usage.db or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE")
    return text  # `accounting.ledger` parses the rest, with SQLAlchemy


def shared_state(text: str) -> str:
    if not text:
        return text
    extras.require("redis")
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0 and not parts.query
        fits = fits and re.fullmatch("/?|/[0-9]{1,3}", parts.path) is not None
    except ValueError:
        fits = False
    if not fits or re.search(r"[^\x21-\x7e]", text):
        raise SettingsError("write redis://HOST:PORT or, with TLS, rediss://USER:PASSWORD@HOST:PORT, each with /NUMBER for a database")
    return text


def shared_state_failure(text: str) -> str:
    if text not in ("local", "refuse"):
        raise SettingsError("write local or refuse")
    return text


def file(text: str) -> str:
    if "\0" in text:
        raise SettingsError("write the path of a file")
    return text if text in ("", "-") else str(expanded(text))


def openai(text: str) -> Base:
    base, _ = parse_base(text)
    return base._replace(prefix=base.prefix.removesuffix("/v1"))  # the client's path contains it
