"""A backend: an Azure endpoint in any form that users paste, and the settings for its requests.

Users paste the resource's address, the address with `/openai/v1/`, the URL of a deployment, or the address of an API Management gateway
with its own prefix. Each of them gives a server, a prefix and sometimes an API version.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import parse_qsl

from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from .model_mapping import Mapper

__all__ = ["AZURE_HOSTS", "EXAMPLE", "Backend", "Base", "parse_apiversion", "parse_base", "parse_endpoint", "parse_host"]

EXAMPLE = "https://RESOURCE.openai.azure.com"
# Azure's own hosts have no prefix: a path after them is an operation or a Foundry project.
AZURE_HOSTS = (
    *(f".{service}.azure.{cloud}" for service in ("openai", "cognitiveservices", "services.ai") for cloud in ("com", "us", "cn")),
    *(f".api.cognitive.{cloud}" for cloud in ("microsoft.com", "microsoft.us", "azure.us", "azure.cn")),
)
# The segments after `/openai/` in the path of an operation of the dated API. Users paste such paths from a portal's sample.
_OPERATIONS = frozenset(
    [
        "assistants",
        "audio",
        "batches",
        "chat",
        "completions",
        "deployments",
        "embeddings",
        "evals",
        "files",
        "fine_tuning",
        "images",
        "models",
        "realtime",
        "realtimeapi",
        "responses",
        "threads",
        "uploads",
        "v1",
        "vector_stores",
    ]
)
PORTS = {"http": 80, "https": 443}

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_URL = re.compile(r"(?P<authority>[^/?]*)(?P<path>[^?]*)(?:\?(?P<query>.*))?")
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_DATED = re.compile(r"(\d{4}-\d{2}-\d{2})(-preview)?")


class Base(NamedTuple):
    """A server and the path prefix of its API: "" or `/apim/x`, without a slash at its end and without `/openai`."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def netloc(self) -> str:
        """Return the value for a Host header: the port is left out if it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One Azure resource, or a gateway in front of it, with the settings for its requests."""

    name: str
    base: Base
    token: str = field(default="", repr=False)
    apiversion: str  # "2024-10-21", "2025-04-01-preview", "v1" or "preview"
    priority: int = 0  # the lowest number is tried first
    weight: int = 1  # relative share of the requests within one priority
    kind: Literal["provisioned", "standard"] = "standard"  # of its deployments
    models: Mapper | None = None  # its models with their deployments; None: any model, by the common mapping
    entra: str = ""  # kind of Microsoft Entra ID credential; "": an API key
    scope: str = ""  # of the Entra tokens; "": the default for the API version
    zone: str = ""  # data zone of its deployments ("us", "eu"), for the price; "": global

    @property
    def order(self) -> tuple[int, bool]:
        """The backends with the lowest value are used first: throughput that is paid for in any case before that which is paid by use."""
        return self.priority, self.kind != "provisioned"

    def serves(self, model: str | None) -> bool:
        """Return whether the backend has this model. Every backend serves a request without a model."""
        return model is None or self.models is None or self.models.has(model)

    def deployment(self, model: str, mapper: Mapper, *, native: bool) -> str:
        """Return the deployment for `model` on this backend. With `native` the client uses Azure's API and names deployments."""
        own = self.models.own(model) if self.models else None
        return own or (mapper.configured(model) if native else mapper.deployment(model))


def parse_endpoint(text: str) -> tuple[Base, str | None]:
    """Parse an Azure endpoint. Return its base and the API version that the text names, or None.

    Raises:
        SettingsError: the text is invalid. The message does not repeat the text, which may contain a password or a key.
    """
    base, query = parse_base(text)
    prefix, version = base.prefix, next((value for name, value in query if name.lower() == "api-version"), None)
    lowered = prefix.lower() + "/"
    parts = lowered.split("/")
    below = [at for at, part in enumerate(parts[:-1]) if part == "openai" and parts[at + 1] in _OPERATIONS]
    cut = len("/".join(parts[: below[0]])) if below else -1
    if below and parts[below[-1] + 1] == "v1" and version != "preview":
        version = "v1"  # the path names it; Azure would refuse a dated version with it
    if base.host.endswith(AZURE_HOSTS):
        prefix = ""
    elif cut >= 0:
        prefix = prefix[:cut]
    elif lowered.endswith("/openai/"):
        prefix = prefix[: -len("/openai")]
    return base._replace(prefix=prefix), parse_apiversion(version) if version else None


def parse_base(text: str) -> tuple[Base, list[tuple[str, str]]]:
    """Parse a URL. Return the server, with the path as the prefix and repeated slashes merged, and the pairs of the query.

    Raises:
        SettingsError: the text is no valid URL.
    """
    if re.search(r"[\x00-\x20\x7f\"'<>{}|\\^`]", text):
        raise SettingsError(f"it contains a space, a quote, a bracket or a control character: write it as in {EXAMPLE}")
    if "#" in text:
        raise SettingsError(f"it contains a fragment (#...): write it without, as in {EXAMPLE}")
    named = _SCHEME.match(text)
    scheme = named[1].lower() if named else "https"
    scheme = {"wss": "https", "ws": "http"}.get(scheme, scheme)  # as in Azure's samples for realtime
    if scheme not in PORTS:
        raise SettingsError(f"{scheme}:// is not supported: the address begins with https:// or http://, as in {EXAMPLE}")
    url = _URL.fullmatch(text[named.end() :] if named else text.removeprefix("//"))
    assert url is not None, "the pattern takes any text without a line end"
    if "@" in url["authority"]:
        raise SettingsError(f"it contains a user name or password: write {EXAMPLE}, and set the key as azure_openai_token")
    host, port = _authority(url["authority"])
    if not named and port is None and "." not in host and ":" not in host and host != "localhost":
        # A key in the wrong variable would be taken for a host name, and logged.
        raise SettingsError(f"it is not an address: write it with https://, as in {EXAMPLE}")
    path = re.sub("/+", "/", url["path"]).rstrip("/")
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise SettingsError(f"its path is not valid: write it as in {EXAMPLE} or https://HOST/PREFIX")
    return Base(scheme, host, PORTS[scheme] if port is None else port, path), parse_qsl(url["query"] or "")


def parse_host(text: str) -> str:
    """Return a host name or address in lower case: an international name in its ASCII form, IPv6 without brackets.

    Raises:
        SettingsError: the text is no valid host.
    """
    if text.startswith("[") or text.count(":") > 1:
        try:
            return str(ipaddress.IPv6Address(text.strip("[]")))
        except ValueError:
            raise SettingsError("the host is not an IPv6 address: write it as in https://[::1]:8443") from None
    try:
        host = text.encode("idna").decode().lower().removesuffix(".")
    except UnicodeError:
        host = ""
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise SettingsError("it contains no valid host name: letters, digits and hyphens between dots, as in RESOURCE.openai.azure.com")
    if labels[-1].isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise SettingsError("the host is neither a name nor an IPv4 address: write it as in http://127.0.0.1:9000") from None
    return host


def parse_apiversion(text: str) -> str:
    """Return `YYYY-MM-DD`, `YYYY-MM-DD-preview`, `v1` or `preview`, in lower case.

    Raises:
        SettingsError: the text is no API version.
    """
    version = text.lower()
    if version in ("v1", "preview"):
        return version
    if dated := _DATED.fullmatch(version):
        try:
            dt.date.fromisoformat(dated[1])
        except ValueError:
            raise SettingsError(f"{dated[1]} is not a date: write a version that Azure lists, as in 2024-10-21") from None
        return version
    raise SettingsError("it is not an API version: write YYYY-MM-DD, YYYY-MM-DD-preview, v1 or preview, as in 2024-10-21")


def _authority(text: str) -> tuple[str, int | None]:
    """Return host and port; the port is None if the text has none."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise SettingsError("it contains no valid host and port: write it as in http://127.0.0.1:9000 or http://[::1]:9000")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise SettingsError("its port is not between 1 and 65535: write it as in http://127.0.0.1:9000")
    return parse_host(match["host"]), port
