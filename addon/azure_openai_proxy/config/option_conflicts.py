"""Values of mitmproxy's own options that keep clients from reaching Azure OpenAI: each is logged as a warning."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

__all__ = ["OptionConflicts"]

logger = logging.getLogger(__name__)


class Conflict(NamedTuple):
    """An option of mitmproxy, and the effect of such a value."""

    option: str
    conflicts: Callable[[Any, AbstractSet[str]], bool]  # the value, OpenAI's hosts
    effect: str


def _match(patterns: Iterable[str], hosts: AbstractSet[str]) -> bool:
    return any(re.search(pattern, f"{host}:443", re.IGNORECASE) for pattern in patterns for host in hosts)


_NOT_DECRYPTED = "clients that go through the proxy to OpenAI are not decrypted, and reach OpenAI itself"
CONFLICTS = (
    Conflict(
        "connection_strategy",
        lambda value, _: value == "eager",
        "clients that go through the proxy first wait for a connection to OpenAI that is not used: set it to lazy",
    ),
    Conflict("ignore_hosts", _match, f"with this value {_NOT_DECRYPTED}: change it so that it does not match api.openai.com"),
    Conflict("allow_hosts", lambda value, hosts: bool(value) and not _match(value, hosts), f"{_NOT_DECRYPTED}: add api.openai.com"),
    Conflict(
        "tcp_hosts",
        _match,
        "it matches OpenAI's hosts, whose traffic is then forwarded untranslated: change it so that it does not match api.openai.com",
    ),
    Conflict("stream_large_bodies", lambda value, _: bool(value), "larger requests are sent before they are translated: unset it"),
    Conflict("validate_inbound_headers", lambda value, _: not value, "requests with ambiguous framing are accepted: set it to true"),
    Conflict("proxyauth", lambda value, _: bool(value), "clients with a base URL need this password too, and few support it"),
)


class OptionConflicts:
    """Logs each conflict once, when it arises."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def check(self, values: Mapping[str, Any], hosts: AbstractSet[str]) -> None:
        for option, conflicts, effect in CONFLICTS:
            if option not in values or not conflicts(values[option], hosts):
                self._logged.discard(option)
            elif option not in self._logged:
                self._logged.add(option)
                logger.warning("%s: %s", option, effect)
