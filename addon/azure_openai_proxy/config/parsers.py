"""Parsers of option values. Each raises SettingsError with the valid values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from azure_openai_proxy.api.backend import Base, parse_apiversion, parse_base, parse_endpoint, parse_host
from azure_openai_proxy.api.endpoints import RETIRED
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = [
    "OPENAI",
    "REPLAY_IGNORED",
    "Address",
    "AllowedDestinations",
    "address",
    "allowed_destinations",
    "count",
    "endpoint",
    "hosts",
    "kept",
    "mode",
    "openai",
    "seconds",
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


def pool_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text):
        raise SettingsError("write a whole number from 0 to 99999")
    return int(text)


def kept(text: str) -> int | None:
    return None if text.lower() == "auto" else 0 if text.lower() in ("off", "0") else size(text)


def openai(text: str) -> Base:
    base, _ = parse_base(text)
    return base._replace(prefix=base.prefix.removesuffix("/v1"))  # the client's path contains it
