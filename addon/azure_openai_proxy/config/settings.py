"""The effective configuration as one immutable value, `Settings`.

Sources in order of precedence: `--set` (or a change while running), the environment, `mitm_config.yaml`, mitmproxy's own
`config.yaml`, the default in the option table. `sources` reads each source into a dict of `Found` and merges the dicts; `resolve`
turns the result into `Settings` without further input.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from azure_openai_proxy.api.backend import EXAMPLE, Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.errors import SettingsError

from . import backends as backends_config
from . import client_list, origins
from .options import API_VERSION, FILE, MASK, OPTIONS, Option
from .origins import EVERY, Origins
from .otlp import Semconv
from .parsers import OPENAI, REPLAY_IGNORED, Address, AllowedDestinations

if TYPE_CHECKING:
    from pathlib import Path

    from mitmproxy.optmanager import OptManager

    from .client_list import Auth
    from .clients import Client, Group
    from .prices import PriceFile

__all__ = ["Found", "Semconv", "Settings", "Timeouts", "as_option_values", "kept_bodies", "resolve", "saves_flows", "summary"]

KEEP = 64 << 20
"""Default size, in bytes, of the store of streamed bodies, if a user interface or a flow file shows them."""


class Timeouts(NamedTuple):
    """Limits in seconds: to connect, until the first byte of the response, and between two chunks."""

    connect: float = 10
    first_byte: float = 600
    chunk: float = 300


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration of a request. A request keeps the settings that were in force at its start."""

    backends: tuple[Backend, ...] = ()  # empty in openai mode; empty in azure mode only if no start has succeeded
    mapper: Mapper = dataclasses.field(default_factory=Mapper)
    mode: Literal["azure", "openai"] = "azure"
    address: Address | None = None  # None: mitmproxy's default
    hosts: frozenset[str] = frozenset({OPENAI.host})
    origins: Origins = EVERY
    normalize: bool = True
    max_body: int = 256 << 20
    keep_bodies: int | None = None  # bytes; None: depends on the tool, see `kept_bodies`
    replay_ignore: Sequence[str] = REPLAY_IGNORED
    replay_paced: bool = False
    map_batch_files: bool = False
    discover_models: bool = False
    replace_apiversions: frozenset[str] = frozenset()
    moderations_unflagged: bool = False

    allowed_destinations: AllowedDestinations = "local"
    shutdown_timeout: float = 30.0  # seconds
    fast_path: bool = True
    metrics: Address | None = None  # None: no metrics for Prometheus
    metrics_series: int = 200  # values of each label
    prices: PriceFile | None = None  # None: only the built-in prices
    passthrough_endpoint: Base = OPENAI
    max_attempts: int = 4
    session_affinity: bool = True
    affinity_timeout: float = 3600.0  # seconds
    affinity_sessions: int = 10_000
    max_cool_down: float = 300.0  # seconds
    drop_lost_items: bool = False
    repair: bool = True
    timeouts: Timeouts = dataclasses.field(default_factory=Timeouts)
    flex_timeout: float = 900.0  # seconds
    tier_fallback: bool = False
    hold_stream: float = 2.0  # seconds
    pool_size: int = 100  # idle connections to each backend
    pool_idle: float = 55.0  # seconds
    debug_headers: bool = False
    otlp: str = ""  # base URL of an OpenTelemetry collector
    otlp_content: bool = False
    semconv: Semconv = "1.41"
    shared_state: str = dataclasses.field(default="", repr=False)  # URL of Redis, may contain a password; "": none
    shared_state_failure: str = "local"
    ledger: str = dataclasses.field(default="", repr=False)  # URL of the database, may contain a password; "": none
    access_log: str = ""  # a file, or "-"; "": none
    clients: tuple[Client, ...] = ()
    groups: tuple[Group, ...] = ()
    client_auth: Auth = ""  # "": required as soon as there is a client
    unpriced: str = "refuse"

    @property
    def backend(self) -> Backend | None:
        """The first backend."""
        return self.backends[0] if self.backends else None

    @property
    def keys_required(self) -> bool:
        """Whether clients need a key, as far as the settings say."""
        return _keys_required(self.client_auth, self.clients)

    @property
    def token(self) -> str:
        """The configured key of the first backend, "" if there is none."""
        return self.backend.token if self.backend else ""

    @property
    def destinations(self) -> frozenset[tuple[str, int]]:
        """Host and port of each configured upstream."""
        bases = [self.passthrough_endpoint] if self.mode == "openai" else [backend.base for backend in self.backends]
        return frozenset((base.host, base.port) for base in bases)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The configured keys of all backends."""
        return tuple(dict.fromkeys(backend.token for backend in self.backends if backend.token))

    @property
    def listed(self) -> Mapper:
        """All mappings, including those of single backends, for `/v1/models` and error messages."""
        own = (entry for backend in self.backends if backend.models for entry in backend.models.entries)
        return Mapper(tuple({entry.model: entry for entry in (*own, *self.mapper.listed)}.values()))


def _keys_required(auth: Auth, clients: Sequence[Client]) -> bool:
    return auth == "required" or bool(clients and not auth)


class Found(NamedTuple):
    """An unparsed value and its source, which error messages name."""

    raw: object
    where: str


def _check_entra(found: Mapping[str, Found], backends: Sequence[Backend]) -> None:
    """Check that Entra ID has what it needs.

    Raises:
        SettingsError: it lacks a variable of the environment.
    """
    try:
        backends_config.check_client_secret(backends)
    except SettingsError as error:
        name = backends_config.NAME if backends_config.NAME in found else "azure_openai_entra"
        raise SettingsError(f"{name} ({found[name].where}): {error}") from None


def resolve(found: Mapping[str, Found], *, offline: bool = False) -> Settings:
    """Parse all settings. `offline` means that recorded responses are replayed, so that no endpoint is required.

    Raises:
        SettingsError: one line with the setting, its source and the valid values, without the key.
    """
    value = {option.name: _parsed(option, found) for option in OPTIONS}
    backends: tuple[Backend, ...] = ()
    listed = found.get(backends_config.NAME)
    version = value["azure_openai_apiversion"] if "azure_openai_apiversion" in found else None
    if listed and "azure_openai_endpoint" in found:
        raise SettingsError(
            f"azure_openai_endpoint ({found['azure_openai_endpoint'].where}): {backends_config.NAME} ({listed.where}) is set too: "
            "write the endpoint as one of the backends, or remove the backends"
        )
    if listed:
        try:
            backends = backends_config.parse(listed.raw, apiversion=version, default_version=API_VERSION, token=value["azure_openai_token"])
        except SettingsError as error:
            raise SettingsError(f"{backends_config.NAME} ({listed.where}): {error}") from None
    elif endpoint := value["azure_openai_endpoint"]:
        base, pasted = endpoint
        entra = value["azure_openai_entra"]
        backend = Backend(
            name="default",
            base=base,
            token="" if entra else value["azure_openai_token"],
            apiversion=version or pasted or API_VERSION,
            entra=entra,
            scope=value["azure_openai_entra_scope"],
        )
        backends = (backend,)
    elif value["azure_openai_proxy_mode"] == "azure" and not offline:
        raise SettingsError(
            f"azure_openai_endpoint is not set: set AZURE_OPENAI_ENDPOINT={EXAMPLE}, "
            f"--set azure_openai_endpoint={EXAMPLE}, or azure_openai_endpoint in {FILE}"
        )
    if value["azure_openai_proxy_mode"] == "azure" and not offline:
        _check_entra(found, backends)
    clients, groups = _clients(found, backends)
    if value["azure_openai_proxy_mode"] == "openai" and (clients or value["azure_openai_client_auth"] in ("required", "optional")):
        name = client_list.NAME if clients else "azure_openai_client_auth"
        raise SettingsError(f"{name} ({found[name].where}): keys of clients need azure_openai_proxy_mode: azure")
    required = _keys_required(value["azure_openai_client_auth"], clients)
    keyed = value["azure_openai_proxy_mode"] == "azure" and any(backend.token or backend.entra for backend in backends) and not required
    return Settings(
        backends=backends,
        mapper=value["azure_openai_model_mapper"],
        mode=value["azure_openai_proxy_mode"],
        address=value["azure_openai_proxy_address"],
        hosts=value["azure_openai_hosts"],
        origins=origins.allowed(value["azure_openai_allowed_origins"], value["azure_openai_hosts"], keyed=keyed),
        normalize=value["azure_openai_normalize"],
        max_body=value["azure_openai_max_body"],
        keep_bodies=value["azure_openai_keep_bodies"],
        replay_ignore=value["azure_openai_replay_ignore"],
        replay_paced=value["azure_openai_replay_paced"],
        map_batch_files=value["azure_openai_map_batch_files"],
        discover_models=value["azure_openai_discover_models"],
        replace_apiversions=value["azure_openai_replace_apiversions"],
        moderations_unflagged=value["azure_openai_moderations_unflagged"],
        allowed_destinations=value["azure_openai_allowed_destinations"],
        shutdown_timeout=value["azure_openai_shutdown_timeout"],
        fast_path=value["azure_openai_fast_path"],
        metrics=value["azure_openai_metrics"],
        metrics_series=value["azure_openai_metrics_series"],
        prices=value["azure_openai_prices"],
        passthrough_endpoint=value["azure_openai_passthrough_endpoint"],
        max_attempts=value["azure_openai_max_attempts"],
        session_affinity=value["azure_openai_session_affinity"],
        affinity_timeout=value["azure_openai_affinity_timeout"],
        affinity_sessions=value["azure_openai_affinity_sessions"],
        max_cool_down=value["azure_openai_max_cool_down"],
        drop_lost_items=value["azure_openai_lost_items"],
        repair=value["azure_openai_repair"],
        timeouts=Timeouts(
            value["azure_openai_connect_timeout"], value["azure_openai_first_byte_timeout"], value["azure_openai_chunk_timeout"]
        ),
        flex_timeout=value["azure_openai_flex_timeout"],
        tier_fallback=value["azure_openai_tier_fallback"],
        hold_stream=value["azure_openai_hold_stream"],
        pool_size=value["azure_openai_pool_size"],
        pool_idle=value["azure_openai_pool_idle"],
        debug_headers=value["azure_openai_debug_headers"],
        otlp=value["azure_openai_otlp"],
        otlp_content=value["azure_openai_otlp_content"],
        semconv=value["azure_openai_semconv"],
        shared_state=value["azure_openai_shared_state"],
        shared_state_failure=value["azure_openai_shared_state_failure"],
        ledger=value["azure_openai_ledger"],
        access_log=value["azure_openai_access_log"],
        clients=clients,
        groups=groups,
        client_auth=value["azure_openai_client_auth"],
        unpriced=value["azure_openai_unpriced"],
    )


def _clients(found: Mapping[str, Found], backends: Sequence[Backend]) -> tuple[tuple[Client, ...], tuple[Group, ...]]:
    name = client_list.GROUPS
    try:
        groups = client_list.parse_groups(found[name].raw) if name in found else ()
        name = client_list.NAME
        names = [backend.name for backend in backends]
        clients = client_list.parse(found[name].raw, groups, names) if name in found else ()
    except SettingsError as error:
        raise SettingsError(f"{name} ({found[name].where}): {error}") from None
    return clients, groups


def kept_bodies(settings: Settings, options: OptManager, *, looked_at: bool) -> int:
    """Size of the store of streamed bodies, in bytes. `looked_at` means that a user interface shows the flows."""
    if settings.keep_bodies is not None:
        return settings.keep_bodies
    return KEEP if looked_at or saves_flows(options) else 0


def saves_flows(options: OptManager) -> bool:
    """Whether mitmproxy saves flows to a file."""
    return any(name in options and getattr(options, name) for name in ("save_stream_file", "hardump"))


def summary(settings: Settings) -> str:
    """The effective configuration in one line, without the key."""
    if settings.mode == "openai":
        parts = [f"openai mode: all requests go to {settings.passthrough_endpoint} unchanged"]
    else:
        if not settings.backends:
            return "azure mode, offline: only recorded responses are served"
        count = len(settings.mapper)
        several = len(settings.backends) > 1
        keys = {_key_of(backend, required=settings.keys_required) for backend in settings.backends}
        parts = [
            "azure mode: " + ", ".join(f"{backend.name} {backend.base}" if several else str(backend.base) for backend in settings.backends),
            "API version " + ", ".join(dict.fromkeys(backend.apiversion for backend in settings.backends)),
            f"{count or 'no'} mapping{'' if count == 1 else 's'} beside the default",
            " and ".join(sorted(keys)),
            *([f"keys of clients required ({len(settings.clients)} in the file)"] if settings.keys_required else []),
            *([f"pages of {settings.origins} may use the key"] if settings.origins.keyed else []),
        ]
    return ", ".join([*parts, f"address {settings.address}" if settings.address else "mitmproxy's own address"])


def _key_of(backend: Backend, *, required: bool) -> str:
    """The key for Azure. `required` means that clients have keys of the proxy."""
    if backend.entra:
        return f"Entra ID ({backend.entra})"
    if backend.token:
        return "key configured"
    return "no key for Azure" if required else "the clients' own keys"


def as_option_values(found: Mapping[str, Found], settings: Settings, config: Path | None) -> dict[str, Any]:
    """The effective configuration as option values, which mitmweb shows; secrets are masked."""
    values = {option.name: _typed(option, found) for option in OPTIONS}
    values["azure_openai_config"] = str(config.absolute()) if config else ""
    if "azure_openai_token" in found:
        values["azure_openai_token"] = MASK
    if "@" in settings.ledger or "?" in settings.ledger:  # the URL may contain a password
        values["azure_openai_ledger"] = MASK
    if "@" in settings.shared_state:
        values["azure_openai_shared_state"] = MASK
    if settings.backend and backends_config.NAME not in found:
        values["azure_openai_endpoint"] = str(settings.backend.base)  # the rest of a pasted URL is unused and may contain a key
        values["azure_openai_apiversion"] = settings.backend.apiversion
    return values


def _parsed(option: Option, found: Mapping[str, Found]) -> Any:
    entry = found.get(option.name)
    try:
        return option.parse(_typed(option, found))
    except SettingsError as error:
        token = found.get("azure_openai_token")
        text = str(error).replace(str(token.raw).strip(), MASK) if token else str(error)  # in case the key was pasted into another option
        raise SettingsError(f"{option.name} ({entry.where if entry else 'default'}): {text}") from None


def _typed(option: Option, found: Mapping[str, Found]) -> Any:
    """Convert a value to the option's type: --set and the environment have strings, YAML has other types too."""
    entry = found.get(option.name)
    if entry is None:
        return option.default
    raw = entry.raw
    if option.type is bool:
        words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        if (value := words.get(str(raw).strip().lower())) is None:
            raise SettingsError("write true or false")
        return value
    if isinstance(raw, Mapping) and option.parse == Mapper.parse:
        raw = [f"{model}={deployment}" for model, deployment in raw.items()]
    if isinstance(raw, dt.date) or (isinstance(raw, int | float) and not isinstance(raw, bool)):
        raw = str(raw)  # YAML parses 2024-10-21 as a date and 8080 as a number
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise SettingsError("write text; in YAML, between quotes")
    if option.type is str:
        return ",".join(items).strip()
    return [part.strip() for item in items for part in item.split(",") if part.strip()]
