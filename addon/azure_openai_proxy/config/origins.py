"""Which web pages may use the proxy: allowed origins, and the host names that are the proxy's own. `gateway/origins` rejects others.

A browser lets any page send requests to a proxy that it can reach. If clients send their own key that is harmless, because a page has
no key. With a configured key any page could use the owner's key, so only pages of allowed origins are served
(`azure_openai_allowed_origins`). For a page whose host name was rebound to this machine (DNS rebinding) the browser sees the proxy as
the same origin and often sends no Origin. Such a request is detected by the name in its Host header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.api.backend import parse_host
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

__all__ = ["EVERY", "LONGEST", "Origins", "Pattern", "allowed", "parse", "split"]

APP_SCHEMES = frozenset({"app", "capacitor", "file", "tauri", "vscode-file", "vscode-webview"})
"""Schemes whose pages belong to an application that is installed on this machine."""
_OWN_HOSTS = frozenset({"localhost", "host.docker.internal", "host.containers.internal", "api.openai.com"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s/:@?#\[\]\\]*)(?::([0-9]{1,5}))?")
_LISTED = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s/:@?#\[\]\\]+)(?::([0-9*]{1,5}))?/?")
LONGEST = 300
"""Characters of an origin or a Host that are compared. A name in DNS has at most 253."""


class Origin(NamedTuple):
    """An Origin header, in lower case; the port is the scheme's default where none is written."""

    scheme: str
    host: str
    port: str

    @classmethod
    def read(cls, text: str) -> Origin | None:
        """None: `null`, several origins, or anything else that names no page."""
        if len(text) > LONGEST or not (match := _ORIGIN.fullmatch(text.lower())):
            return None
        scheme, host, port = match.groups()
        return cls(scheme, host.removesuffix("."), port or _DEFAULT_PORTS.get(scheme, ""))

    @property
    def is_local(self) -> bool:
        return self.scheme in APP_SCHEMES or _is_local(self.host)


class Pattern(NamedTuple):
    """One origin of the list, with `*` for any text within the host or the port."""

    scheme: str
    host: re.Pattern[str]
    port: re.Pattern[str]
    text: str  # as it was written

    def matches(self, origin: Origin) -> bool:
        return self.scheme == origin.scheme and bool(self.host.fullmatch(origin.host) and self.port.fullmatch(origin.port))


type Listed = tuple[Pattern, ...] | None
"""The patterns of the option. None: `*`, every origin."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Which origins and which names of the proxy are allowed."""

    every: bool = True
    patterns: tuple[Pattern, ...] = ()
    hosts: frozenset[str] = _OWN_HOSTS
    keyed: bool = False  # a key is configured, so an allowed page may use it

    def allows(self, text: str, authority: str) -> bool:
        """Whether a page of the origin `text` may send a request whose Host is `authority`."""
        if self.every:
            return True
        if (origin := Origin.read(text)) is None:
            return False
        if origin.is_local or any(pattern.matches(origin) for pattern in self.patterns):
            return True
        own, port = split(authority)  # some WebSocket libraries name the server itself as their origin
        return origin.host == own and origin.port == (port or _DEFAULT_PORTS.get(origin.scheme)) and self.owns(own)

    def owns(self, host: str) -> bool:
        """Whether `host` is a name of the proxy that no other site can have. An address is: only a name can be rebound."""
        if self.every or not host or host in self.hosts:
            return True
        if len(host) > LONGEST:
            return False
        if _is_address(host) or host.endswith(".localhost"):
            return True
        return any(pattern.host.fullmatch(host) for pattern in self.patterns if pattern.scheme in _DEFAULT_PORTS)

    def __str__(self) -> str:
        """The origins in words, for the line that the proxy logs at its start."""
        return "any origin" if self.every else " and ".join(["local origins", *(pattern.text for pattern in self.patterns)])


EVERY = Origins()


def parse(items: Sequence[str]) -> Listed:
    """The value of `azure_openai_allowed_origins`.

    Raises:
        SettingsError: an item is not an origin.
    """
    return None if list(items) == ["*"] else tuple(map(_pattern, items))


def allowed(listed: Listed, hosts: AbstractSet[str], *, keyed: bool) -> Origins:
    """The rule in force. `hosts`: those of `azure_openai_hosts`; `keyed`: a key is configured, so a page needs none."""
    if listed is None or not (listed or keyed):
        return Origins(keyed=keyed)
    return Origins(every=False, patterns=listed, hosts=_OWN_HOSTS | hosts, keyed=keyed)


def _pattern(item: str) -> Pattern:
    match = _LISTED.fullmatch(item.lower()) if len(item) <= LONGEST else None
    if not match:
        raise SettingsError(
            "write origins as scheme://host or scheme://host:port, separated by commas, as in https://chat.example.com or "
            "http://*.example.com:*; a * alone allows every origin"
        )
    scheme, host, port = match.groups()
    if scheme in _DEFAULT_PORTS and "*" not in host:
        host = parse_host(host)
        host = f"[{host}]" if ":" in host else host
    return Pattern(scheme, _glob(host.removesuffix(".")), _glob(port or _DEFAULT_PORTS.get(scheme, "")), item.removesuffix("/"))


def _glob(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", text))))


def split(authority: str) -> tuple[str, str]:
    """The host of a Host header, in lower case and without the root's dot, and the port as it is written."""
    return _split(authority) if len(authority) <= LONGEST else ("?", "")  # no name is that long; the cache stays small


@lru_cache(256)
def _split(authority: str) -> tuple[str, str]:
    host, _, port = authority.lower().rpartition(":")
    if not host or port.endswith("]"):
        host, port = authority.lower(), ""
    return host.removesuffix("."), port


@lru_cache(256)
def _is_address(host: str) -> bool:
    """Whether a browser takes this host for an IP address, as the URL standard says: by its brackets, or a number at its end."""
    return host.startswith("[") or bool(re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]))


def _is_local(host: str) -> bool:
    """Whether a host of an origin, as browsers write it, is this machine."""
    return host in ("localhost", "[::1]") or host.endswith(".localhost") or bool(re.fullmatch(r"127(\.[0-9]{1,3}){3}", host))
