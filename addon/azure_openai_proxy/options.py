"""The settings: one table of options, and what is in force.

A setting comes from `--set` (or a change while running), the environment, `mitm_config.yaml`, mitmproxy's own
`config.yaml`, or the table's default; the strongest comes first. Each of those is read into `{name: Found}`, the levels are
laid over each other, and `resolve` makes one frozen `Settings` of what is left: pure, so that precedence is a matter of
dicts. `Live` is the part that knows mitmproxy: it keeps the settings current and shows what is in force as option values.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime as dt
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from mitmproxy import exceptions
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.tools import cmdline
from mitmproxy.utils import typecheck
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from . import backends_file, recordings
from .backends import EXAMPLE, Backend, Base, parse_apiversion, parse_base, parse_endpoint, parse_host
from .endpoints import RETIRED
from .errors import SettingsError
from .http_layer import Timeouts
from .models import Mapper

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader
    from mitmproxy.optmanager import OptManager

    from .safety import Relay

__all__ = [
    "OPTIONS",
    "Address",
    "Live",
    "Option",
    "Settings",
    "command_line",
    "gather",
    "kept_bodies",
    "listen_modes",
    "movable",
    "resolve",
    "summary",
]

logger = logging.getLogger(__name__)

API_VERSION = "2024-10-21"
"""Azure's newest dated version that is no preview."""
KEEP = 64 << 20
"""Bytes of streamed bodies that are kept where somebody may look at them."""
OPENAI = Base("https", "api.openai.com", 443)
FILE = "mitm_config.yaml"
MASK = "(hidden)"
"""Stands in the token's option while one is set: mitmweb shows option values to whoever may open it."""

# What the parsers make of an option's value


class Address(NamedTuple):
    """Where to listen; host "" is every interface, port 0 one that the kernel picks."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _endpoint(text: str) -> tuple[Base, str | None] | None:
    return parse_endpoint(text) if text else None


def _mode(text: str) -> Literal["azure", "openai"]:
    match text.lower():
        case "azure":
            return "azure"
        case "openai":
            return "openai"
    raise SettingsError("write azure or openai")


def _address(text: str) -> Address | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise SettingsError("write HOST:PORT, :PORT or PORT, as in 127.0.0.1:8080 or [::1]:8080")
    return Address(parse_host(host) if host else "", int(port))


def _hosts(names: Sequence[str]) -> frozenset[str]:
    try:
        return frozenset(map(parse_host, names)) | {OPENAI.host}
    except SettingsError:
        raise SettingsError("write host names without https:// and port, separated by commas, as in api.example.com") from None


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)\s*([kmg]?)i?b?", text.lower())
    if match is None or not int(match[1]):
        raise SettingsError("write a number of bytes, or one with k, m or g, as in 256m")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


def _versions(names: Sequence[str]) -> frozenset[str]:
    named = {name.lower() for name in names}
    return frozenset(map(parse_apiversion, named - {"retired"})) | (RETIRED if "retired" in named else frozenset())


def _relay(text: str) -> Relay:
    relays: dict[str, Relay] = {"any": "any", "local": "local", "public": "public", "off": "off"}
    if (relay := relays.get(text.lower())) is None:
        raise SettingsError("write any, local, public or off")
    return relay


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?s?", text):
        raise SettingsError("write a number of seconds, as in 30")
    return float(text.removesuffix("s"))


def _timeout(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise SettingsError("write a number of seconds above 0, as in 30")
    return seconds


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]?", text):
        raise SettingsError("write a whole number from 1 to 99")
    return int(text)


def _kept(text: str) -> int | None:
    return None if text.lower() == "auto" else 0 if text.lower() in ("off", "0") else _size(text)


def _openai(text: str) -> Base:
    base, _ = parse_base(text)
    return base._replace(prefix=base.prefix.removesuffix("/v1"))  # the client's path brings its own


# The table


class Option(NamedTuple):
    """One setting. Its name in capitals is its environment variable; `aliases` are read after that."""

    name: str
    type: object  # str, bool or Sequence[str]: what survives --set, --options and mitmweb
    default: str | bool | Sequence[str]
    parse: Callable[[Any], Any]  # the option's value → the value in force; SettingsError says what would be right
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        return (self.name.upper(), *self.aliases)


OPTIONS = (
    Option(
        "azure_openai_endpoint",
        str,
        "",
        _endpoint,
        f"Where Azure OpenAI is, as in {EXAMPLE}. A path, a prefix of API Management and the full URL of a deployment are understood.",
    ),
    Option(
        "azure_openai_token",
        str,
        "",
        backends_file.parse_key,
        "The key for Azure OpenAI. With it the clients' own keys are ignored; without it a client's own key is sent to Azure.",
        ("AZURE_OPENAI_API_KEY",),
    ),
    Option(
        "azure_openai_apiversion",
        str,
        API_VERSION,
        parse_apiversion,
        "Azure's API version: a dated one (2024-10-21, 2025-04-01-preview), v1 or preview. A version in the endpoint's URL counts if "
        "none is set.",
        ("OPENAI_API_VERSION",),
    ),
    Option(
        "azure_openai_model_mapper",
        str,
        "",
        Mapper.parse,
        "Model names to deployments: model=deployment pairs, separated by commas. A * stands for any text, on the right for what it "
        "matched. Added to the default: gpt-3.5-turbo*=gpt-35-turbo*, whisper-1=whisper, tts-1=tts, tts-1-hd=tts-hd.",
    ),
    Option(
        "azure_openai_proxy_mode",
        str,
        "azure",
        _mode,
        "azure: requests are translated and go to Azure OpenAI. openai: they go to azure_openai_openai_endpoint unchanged.",
    ),
    Option(
        "azure_openai_proxy_address",
        str,
        "",
        _address,
        "Where to listen: HOST:PORT, :PORT or PORT. Empty: where mitmproxy listens by itself, port 8080 on every interface. "
        "--listen-host, --listen-port and a --mode with @ beat it.",
    ),
    Option(
        "azure_openai_hosts",
        Sequence[str],
        (),
        _hosts,
        "Hosts that are served like api.openai.com when a client goes through the proxy to them, separated by commas.",
    ),
    Option(
        "azure_openai_normalize",
        bool,
        True,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Make Azure's answers look like OpenAI's: no content filter results, no chunks that OpenAI would not "
        "send. Off: bytes as they come.",
    ),
    Option(
        "azure_openai_max_body",
        str,
        "256m",
        _size,
        "The largest request body that is taken, in bytes or with k, m or g. Larger ones are answered with 413.",
    ),
    Option(
        "azure_openai_map_batch_files",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Map the models inside a batch's file too, line by line, as it is uploaded. Off: its lines name deployments.",
    ),
    Option(
        "azure_openai_discover_models",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "List the resource's deployments in /v1/models too. They are asked for in the background, with azure_openai_token.",
    ),
    Option(
        "azure_openai_replace_apiversions",
        Sequence[str],
        (),
        _versions,
        "API versions that clients of Azure's own paths may still ask for and that become the configured one, separated by commas; "
        "`retired` stands for those that Azure has announced the end of.",
    ),
    Option(
        "azure_openai_moderations_unflagged",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Answer POST /v1/moderations with `flagged: false`, WITHOUT LOOKING AT THE INPUT, for clients that do not work without an "
        "answer. It is no verdict: do not set it where anyone relies on one. Off: a 404 that says that Azure has no moderations.",
    ),
    Option(
        "azure_openai_relay",
        str,
        "local",
        _relay,
        "Where clients are led that go through the proxy to other hosts than OpenAI's. local: those of this machine anywhere, all others "
        "to public addresses only. public: everyone to public addresses only (behind a balancer on this machine all look local). any: "
        "everyone anywhere. off: nobody anywhere.",
    ),
    Option(
        "azure_openai_stop_timeout",
        str,
        "30",
        _seconds,
        "Seconds that what is running may take to finish after SIGTERM.",
    ),
    Option(
        "azure_openai_max_attempts",
        str,
        "4",
        _count,
        "How often one request may be sent to Azure in all: to other backends, or changed after Azure's own error.",
    ),
    Option(
        "azure_openai_repair",
        bool,
        True,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Change a request that Azure refuses for a parameter it has under another name, or that may be left out, and send it again.",
    ),
    Option(
        "azure_openai_connect_timeout",
        str,
        "10",
        _timeout,
        "Seconds until a connection to Azure must be there, TLS included.",
    ),
    Option(
        "azure_openai_first_byte_timeout",
        str,
        "600",
        _timeout,
        "Seconds until Azure must begin to answer.",
    ),
    Option(
        "azure_openai_chunk_timeout",
        str,
        "300",
        _timeout,
        "Seconds that may lie between two pieces of an answer.",
    ),
    Option(
        "azure_openai_debug_headers",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Name the backend and the repairs in the headers of each answer.",
    ),
    Option(
        "azure_openai_entra",
        str,
        "",
        backends_file.parse_entra,
        f"Ask Azure with a token of Microsoft Entra ID instead of a key: {', '.join(backends_file.ENTRA)}.",
    ),
    Option(
        "azure_openai_entra_scope",
        str,
        "",
        str,
        "The scope of Entra ID's tokens. Empty: the one for the API version.",
    ),
    Option(
        "azure_openai_keep_bodies",
        str,
        "auto",
        _kept,
        "How much of streamed answers to keep for mitmweb, the console and saved files: bytes, or with k, m or g; the oldest give way. "
        "off: nothing. auto: 64m in mitmweb and mitmproxy, and in mitmdump while it saves to a file (-w).",
    ),
    Option(
        "azure_openai_replay_ignore",
        Sequence[str],
        list(recordings.IGNORED),
        tuple,
        "With --server-replay: what may differ in a body that was recorded. Members by their place, as in metadata or messages.*.name, and "
        "dates and uuids for those in any text.",
    ),
    Option(
        "azure_openai_replay_paced",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "With --server-replay: give streams in the pace in which they were recorded. Off: at once.",
    ),
    Option(
        "azure_openai_shortcuts",
        bool,
        True,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Take shortcuts through mitmproxy, on a mitmproxy that is known: half the processor time, the same answers. "
        "Off: mitmproxy's own ways.",
    ),
    Option(
        "azure_openai_openai_endpoint",
        str,
        str(OPENAI),
        _openai,
        "Where requests go when azure_openai_proxy_mode is openai.",
    ),
    Option(
        "azure_openai_config",
        str,
        "",
        str,
        f"A YAML file with these options and mitmproxy's own. Empty: {FILE} in the working directory, if there is one.",
    ),
)
NAMES = frozenset(option.name for option in OPTIONS)
BY_NAME = {option.name: option for option in OPTIONS}

# What is in force


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a request needs to know of the configuration. A request keeps the one it came under."""

    backends: tuple[Backend, ...] = ()  # none in openai mode, and in azure mode only while no start has succeeded
    mapper: Mapper = dataclasses.field(default_factory=Mapper)
    mode: Literal["azure", "openai"] = "azure"
    address: Address | None = None  # None: mitmproxy's own
    hosts: frozenset[str] = frozenset({OPENAI.host})
    normalize: bool = True
    max_body: int = 256 << 20
    keep_bodies: int | None = None  # bytes; None: it depends on who looks
    replay_ignore: Sequence[str] = recordings.IGNORED
    replay_paced: bool = False
    map_batch_files: bool = False
    discover_models: bool = False
    replace_apiversions: frozenset[str] = frozenset()
    moderations_unflagged: bool = False

    relay: Relay = "local"
    stop_timeout: float = 30.0  # seconds
    shortcuts: bool = True
    openai_endpoint: Base = OPENAI
    max_attempts: int = 4
    repair: bool = True
    timeouts: Timeouts = dataclasses.field(default_factory=Timeouts)
    debug_headers: bool = False

    @property
    def backend(self) -> Backend | None:
        """The first of them."""
        return self.backends[0] if self.backends else None

    @property
    def token(self) -> str:
        """The configured key, "" if there is none."""
        return self.backend.token if self.backend else ""

    @property
    def destinations(self) -> frozenset[tuple[str, int]]:
        """Host and port of everyone that our own requests go to."""
        bases = [self.openai_endpoint] if self.mode == "openai" else [backend.base for backend in self.backends]
        return frozenset((base.host, base.port) for base in bases)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The configured keys of all backends."""
        return tuple(dict.fromkeys(backend.token for backend in self.backends if backend.token))

    @property
    def listed(self) -> Mapper:
        """All mappings, those of single backends too: what `/v1/models` lists, and an error names."""
        own = (entry for backend in self.backends if backend.models for entry in backend.models.entries)
        return Mapper(tuple({entry.model: entry for entry in (*own, *self.mapper.entries)}.values()))


class Found(NamedTuple):
    """A value as somebody wrote it, and where: for the error it may cause."""

    raw: object
    where: str


def resolve(found: Mapping[str, Found], *, offline: bool = False) -> Settings:
    """Make settings of what was found. `offline`: recorded answers are replayed, and there need be no Azure.

    Raises:
        SettingsError: one line: which setting, where it was set, what would be right; the key is not in it.
    """
    value = {option.name: _parsed(option, found) for option in OPTIONS}
    backends: tuple[Backend, ...] = ()
    listed = found.get(backends_file.NAME)
    version = value["azure_openai_apiversion"] if "azure_openai_apiversion" in found else None
    if listed and "azure_openai_endpoint" in found:
        raise SettingsError(
            f"azure_openai_endpoint ({found['azure_openai_endpoint'].where}): {backends_file.NAME} ({listed.where}) is set too: "
            "write the endpoint as one of the backends, or take the backends away"
        )
    if listed:
        try:
            backends = backends_file.parse(listed.raw, apiversion=version, default_version=API_VERSION, token=value["azure_openai_token"])
        except SettingsError as error:
            raise SettingsError(f"{backends_file.NAME} ({listed.where}): {error}") from None
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
    return Settings(
        backends=backends,
        mapper=value["azure_openai_model_mapper"],
        mode=value["azure_openai_proxy_mode"],
        address=value["azure_openai_proxy_address"],
        hosts=value["azure_openai_hosts"],
        normalize=value["azure_openai_normalize"],
        max_body=value["azure_openai_max_body"],
        keep_bodies=value["azure_openai_keep_bodies"],
        replay_ignore=value["azure_openai_replay_ignore"],
        replay_paced=value["azure_openai_replay_paced"],
        map_batch_files=value["azure_openai_map_batch_files"],
        discover_models=value["azure_openai_discover_models"],
        replace_apiversions=value["azure_openai_replace_apiversions"],
        moderations_unflagged=value["azure_openai_moderations_unflagged"],
        relay=value["azure_openai_relay"],
        stop_timeout=value["azure_openai_stop_timeout"],
        shortcuts=value["azure_openai_shortcuts"],
        openai_endpoint=value["azure_openai_openai_endpoint"],
        max_attempts=value["azure_openai_max_attempts"],
        repair=value["azure_openai_repair"],
        timeouts=Timeouts(
            value["azure_openai_connect_timeout"], value["azure_openai_first_byte_timeout"], value["azure_openai_chunk_timeout"]
        ),
        debug_headers=value["azure_openai_debug_headers"],
    )


def kept_bodies(settings: Settings, options: OptManager, *, looked_at: bool) -> int:
    """Bytes of streamed bodies to keep. `looked_at`: there is a list of flows that somebody may open."""
    if settings.keep_bodies is not None:
        return settings.keep_bodies
    saved = any(name in options and getattr(options, name) for name in ("save_stream_file", "hardump"))
    return KEEP if looked_at or saved else 0


def summary(settings: Settings) -> str:
    """What is in force, in one line; never the key."""
    if settings.mode == "openai":
        parts = [f"openai mode: everything goes to {settings.openai_endpoint} unchanged"]
    else:
        if not settings.backends:
            return "azure mode, offline: only what was recorded is answered"
        count = len(settings.mapper)
        several = len(settings.backends) > 1
        keys = {_key_of(backend) for backend in settings.backends}
        parts = [
            "azure mode: " + ", ".join(f"{backend.name} {backend.base}" if several else str(backend.base) for backend in settings.backends),
            "API version " + ", ".join(dict.fromkeys(backend.apiversion for backend in settings.backends)),
            f"{count or 'no'} mapping{'' if count == 1 else 's'} beside the default",
            " and ".join(sorted(keys)),
        ]
    return ", ".join([*parts, f"address {settings.address}" if settings.address else "mitmproxy's own address"])


def _key_of(backend: Backend) -> str:
    if backend.entra:
        return f"Entra ID ({backend.entra})"
    return "key configured" if backend.token else "the clients' own keys"


def shown(found: Mapping[str, Found], settings: Settings, config: Path | None) -> dict[str, Any]:
    """What is in force as option values, for mitmweb: all but the key."""
    values = {option.name: _typed(option, found) for option in OPTIONS}
    values["azure_openai_config"] = str(config.absolute()) if config else ""
    if "azure_openai_token" in found:
        values["azure_openai_token"] = MASK
    if settings.backend and backends_file.NAME not in found:
        values["azure_openai_endpoint"] = str(settings.backend.base)  # what else was pasted is of no use, and may hold a key
        values["azure_openai_apiversion"] = settings.backend.apiversion
    return values


def _parsed(option: Option, found: Mapping[str, Found]) -> Any:
    entry = found.get(option.name)
    try:
        return option.parse(_typed(option, found))
    except SettingsError as error:
        token = found.get("azure_openai_token")
        text = str(error).replace(str(token.raw).strip(), MASK) if token else str(error)  # pasted where it does not belong
        raise SettingsError(f"{option.name} ({entry.where if entry else 'default'}): {text}") from None


def _typed(option: Option, found: Mapping[str, Found]) -> Any:
    """The value in the option's own type: --set and the environment hold text, YAML may hold more."""
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
        raw = str(raw)  # YAML has types of its own for 2024-10-21 and 8080
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise SettingsError("write text; in YAML, between quotes")
    if option.type is str:
        return ",".join(items).strip()
    return [part.strip() for item in items for part in item.split(",") if part.strip()]


# Where values come from


class Given(NamedTuple):
    """The command line, as far as it sets options."""

    sets: Mapping[str, Sequence[str]] = {}  # --set name=value: all values of a name
    names: frozenset[str] = frozenset()  # every option that it sets, mitmproxy's own flags too
    modes: Sequence[str] = ()  # --mode

    @property
    def listens(self) -> bool:
        """Whether it says where to listen."""
        return not self.names.isdisjoint({"listen_host", "listen_port"}) or any("@" in mode for mode in self.modes)


class ConfigFile(NamedTuple):
    path: Path | None = None
    values: Mapping[str, object] = {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def command_line(arguments: Sequence[str], options: OptManager) -> Given:
    """Read mitmproxy's arguments. What is no command line of mitmproxy's (a program that embeds it) gives nothing."""
    parser = _Parser(add_help=False)
    cmdline.common_options(parser, options)
    for name in ("web_open_browser", "web_port", "web_host", "flow_detail", "console_layout", "intercept", "view_filter"):
        options.make_parser(parser, name)
    try:
        found, _ = parser.parse_known_args(list(arguments))
    except SettingsError:
        return Given()
    sets: dict[str, list[str]] = {}
    for text in found.setoptions:
        name, equals, value = text.partition("=")
        sets.setdefault(name, []).extend([value] if equals else [])
    flags = {name for name, value in vars(found).items() if value is not None and name in options}
    if found.quiet or found.verbose:
        flags |= {"termlog_verbosity", "flow_detail"}
    return Given(sets, frozenset(sets) | flags, [*(found.mode or []), *sets.get("mode", [])])


def gather(
    given: Given,
    environ: Mapping[str, str],
    confdir: str,
    *,
    deferred: Mapping[str, object] | None = None,
    changed: Mapping[str, Found] | None = None,
) -> tuple[dict[str, Found], ConfigFile]:
    """Lay the levels over each other. An option set to nothing by --set is its default, whatever weaker levels say.

    `deferred` are values that mitmproxy was given in other ways before our options existed; `changed` those set while running.
    """
    weak = dict(deferred or {})
    weak_where = "mitmproxy's config.yaml"
    for name in ("config.yaml", "config.yml"):
        if (path := Path(confdir).expanduser() / name).is_file():
            weak |= _read(path)
            weak_where = str(path)
    levels = [_from_file(weak, weak_where), _from_environment(environ), _from_command_line(given), changed or {}]
    config = _over(*levels).get("azure_openai_config")
    path = Path(str(config.raw).strip()).expanduser() if config else Path(FILE)
    if config and not path.is_file():
        raise SettingsError(f"azure_openai_config ({config.where}): there is no file {path}")
    file = ConfigFile(path, _read(path)) if path.is_file() else ConfigFile()
    if "azure_openai_config" in file.values:
        raise SettingsError(f"azure_openai_config ({path}): it names this file: set AZURE_OPENAI_CONFIG or --set azure_openai_config=FILE")
    return _over(levels[0], _from_file(file.values, str(path)), _backends(file, environ), *levels[1:]), file


def _backends(file: ConfigFile, environ: Mapping[str, str]) -> dict[str, Found]:
    """The one setting that only the file can hold."""
    raw = file.values.get(backends_file.NAME)
    where = str(file.path)
    return {} if raw is None else {backends_file.NAME: Found(backends_file.expand(raw, environ, where), where)}


def _over(*levels: Mapping[str, Found]) -> dict[str, Found]:
    """The weakest first."""
    merged: dict[str, Found] = {}
    for level in levels:
        merged |= level
    return {name: found for name, found in merged.items() if not _is_unset(found.raw)}


def _is_unset(raw: object) -> bool:
    text = raw.strip() if isinstance(raw, str) else raw
    return text is None or text in ("", MASK) or text in ([], (), {})


def _from_file(values: Mapping[str, object], where: str) -> dict[str, Found]:
    return {name: Found(values[name], where) for name in NAMES & set(values) if not _is_unset(values[name])}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Found]:
    return {
        option.name: Found(environ[variable], f"environment variable {variable}")
        for option in OPTIONS
        for variable in reversed(option.variables)  # the last one stays: our own name beats the aliases
        if not _is_unset(environ.get(variable))
    }


def _from_command_line(given: Given) -> dict[str, Found]:
    found = {}
    for name in NAMES & set(given.sets):
        option, values = BY_NAME[name], given.sets[name]
        raw: object = list(values)
        if option.type is bool and values in ([], ["toggle"]):
            raw = "true" if not values else str(not option.default)
        elif option.type != Sequence[str]:
            if len(values) != 1:
                raise SettingsError(f"{name} (--set): write it once, with a value: --set {name}=VALUE")
            raw = values[0]
        found[name] = Found(raw, "--set")
    return found


def _read(path: Path) -> dict[str, object]:
    """A YAML mapping. Of a file that is none, errors show the place and not the text: a key may stand there."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        right = "write `name: value` lines, each name once, and values with : # [ { * & in quotes"
        raise SettingsError(f"{place}: not YAML: {right}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{path} is not a mapping: write `name: value` lines")
    return values


TOOLS = frozenset(
    """
    console_default_contentview console_eventlog_verbosity console_flowlist_layout console_focus_follow console_layout
    console_layout_headers console_mouse console_palette console_palette_transparent console_quickhelp_visible
    console_strip_trailing_newlines dumper_default_contentview dumper_filter flow_detail intercept intercept_active keepserving
    termlog_verbosity view_filter view_order view_order_reversed web_columns web_debug web_host web_open_browser web_password
    web_port web_static_viewer
    """.split()  # noqa: SIM905 - a list of words reads best as one
)
"""Options that only mitmdump, only mitmweb or only mitmproxy has: one file serves all three."""


def check_names(file: ConfigFile, known: Iterable[str]) -> None:
    """Raises SettingsError for a name that no option has, with the nearest one that is."""
    known = {*known, *NAMES, *TOOLS, backends_file.NAME}
    for name in file.values:
        if name not in known:
            near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(known), 1, 0.5)
            # what was meant as a value may have ended up as a name, and be a key
            what = f"{name} is" if re.fullmatch("[A-Za-z_-]{1,40}", name) else "one of its names is"
            raise SettingsError(f"{file.path}: {what} no option" + (f": did you mean {near[0]}?" if near else ""))


# Listening


def listen_modes(modes: Sequence[str], address: Address) -> list[str]:
    """The modes of mitmproxy's, the first that has no address of its own (and can have one) at `address`."""
    listening = list(modes)
    for index, mode in enumerate(modes):
        if _port(mode) is not None:
            listening[index] = _at(mode, address.host, address.port)
            break
    return listening


def movable(modes: Sequence[str]) -> bool:
    """Whether --listen-host and --listen-port, which are for all modes at once, do the same as `listen_modes`."""
    return len(modes) == 1 and _port(modes[0]) is not None


def _at(mode: str, host: str, port: int) -> str:
    return f"{mode}@{host}:{port}" if host else f"{mode}@{port}"


def _port(mode: str) -> int | None:
    """The default port of a mode; None for one that has an address, or takes its traffic in other ways than OpenAI clients come."""
    try:
        parsed = ProxyMode.parse(mode)
    except ValueError:
        return None  # mitmproxy has a better message for it
    return None if "@" in mode or parsed.type_name in ("dns", "wireguard") else parsed.default_port


# mitmproxy


def declare(loader: Loader) -> None:
    for option in OPTIONS:
        loader.add_option(option.name, option.type, option.default, option.help)  # type: ignore[arg-type]


class Live:
    """The settings in force while mitmproxy runs. The addon's hooks of the same names call these."""

    def __init__(self, environ: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None) -> None:
        self.settings = Settings()
        self._environ = os.environ if environ is None else environ
        self._arguments = sys.argv[1:] if arguments is None else arguments
        self._given = Given()
        self._deferred: dict[str, object] = {}
        self._changed: dict[str, Found] = {}  # while running
        self._shown: dict[str, Any] = {}  # what our options hold by our own hand: anything else is somebody's change
        self._file = ConfigFile()
        self._running = False
        self._busy = False
        self._modes: tuple[list[str], list[str]] | None = None  # mitmproxy's before we changed them, and as we left them

    def load(self, loader: Loader) -> None:
        declare(loader)
        options = loader.master.options
        given = command_line(self._arguments, options)
        # mitmproxy keeps what it cannot place yet, the values of config.yaml over those of --set, and would now put them into our
        # options: with --set beaten by a file, the key for all to see, and a traceback for a value of the wrong type. They are
        # ours to read, so take them away; `gather` finds both again, each in its place.
        sets = dict(given.sets)
        for name in NAMES & set(options.deferred):
            value = options.deferred.pop(name)
            if (texts := getattr(value, "val", None)) is not None:  # from --set, as yet unread
                sets.setdefault(name, texts)
            else:
                self._deferred[name] = value
        self._given = given._replace(sets=sets)
        self._shown = _current(options)

    def configure(self, options: OptManager, updated: Iterable[str]) -> None:
        """Read what changed. At the start a bad value is one ERROR in the log, which ends mitmproxy; later the change is refused.

        Raises:
            OptionsError: mitmproxy then puts the former values back.
        """
        ours = NAMES & set(updated)
        start = ours == NAMES  # mitmproxy names every option to an addon that was just loaded
        changed = {name: Found(value, "set while running") for name, value in _current(options).items() if value != self._shown.get(name)}
        if self._busy or not ours or not (start or changed):
            return  # our own hand, or none of ours
        self._busy = True
        try:
            self._read(options, changed)
        except SettingsError as error:
            if not start:
                raise exceptions.OptionsError(str(error)) from error
            logger.error("%s", error)  # noqa: TRY400 - a line for a person, no traceback
            return
        finally:
            self._busy = False
        if self._running:
            logger.info(summary(self.settings))

    async def watch(self, options: OptManager, every: float = 1.0) -> None:
        """Take up what changes in the file, and in the files with keys that it names. What cannot be used is told once and left alone."""
        seen = self._stamps()
        while True:
            await asyncio.sleep(every)
            if seen != (seen := self._stamps()):
                self.reread(options)
                seen = self._stamps()

    def _stamps(self) -> dict[Path, int | None]:
        files = {self._file.path or Path(FILE), *backends_file.files(self._file.values.get(backends_file.NAME))}
        return {path: _modified(path) for path in files}

    def reread(self, options: OptManager) -> None:
        """Read everything again; a file that cannot be used changes nothing."""
        self._busy = True
        before = self.settings
        try:
            self._read(options, {})
        except SettingsError as error:
            logger.error("%s: the settings stay as they were", error)  # noqa: TRY400 - a line for a person, no traceback
            return
        finally:
            self._busy = False
        if self.settings != before:
            logger.info(summary(self.settings))

    def running(self, options: OptManager) -> None:
        """Listen where the settings and the file say (mitmproxy read its own options too early for either) and tell what is in force."""
        self._running = True
        if self.settings.mode == "azure" and self.settings.backend is None and not _offline(options):
            return  # the start has failed, and has said so
        modes = list(options.mode)
        if self.settings.address == (options.listen_host, options.listen_port):
            pass  # mitmproxy is there already: the launcher puts the address into the arguments
        elif self.settings.address:
            self._listen(options, listen_modes(modes, self.settings.address))
        elif not self._given.listens and not {"mode", "listen_host", "listen_port", "server"}.isdisjoint(self._file.values):
            self._listen(options, [self._explicit(mode, options) for mode in modes])
            options.update(server=options.server)
        logger.info(summary(self.settings))

    def _read(self, options: OptManager, changed: Mapping[str, Found]) -> None:
        changed = {**self._changed, **changed}
        found, file = gather(self._given, self._environ, options.confdir, deferred=self._deferred, changed=changed)
        check_names(file, options.keys())
        settings = resolve(found, offline=_offline(options))
        runtime = "azure_openai_proxy_address" in changed
        if self._given.listens and not runtime and settings.address != (options.listen_host, options.listen_port):
            settings = dataclasses.replace(settings, address=None)  # the command line has the last word on where to listen
        self._apply(options, file)
        before, self.settings, self._changed, self._file = self.settings, settings, changed, file
        self._shown = shown(found, settings, file.path)
        options.update(**self._shown)
        if self._running and settings.address != before.address:
            modes = list(options.mode)
            if self._modes and self._modes[1] == modes:
                modes = self._modes[0]
            self._listen(options, listen_modes(modes, settings.address) if settings.address else modes)

    def _apply(self, options: OptManager, file: ConfigFile) -> None:
        """Set mitmproxy's own options as the file says, unless the command line does, or the file said so before."""
        specs = dict(options.items())
        for name, value in file.values.items():
            if name in NAMES or name in self._given.names or name not in specs or self._file.values.get(name, ...) == value:
                continue
            where = f"{name} ({file.path})"
            spec = specs[name]
            try:
                typecheck.check_option_type(name, value, spec.typespec)
            except TypeError:
                raise SettingsError(f"{where}: write {_typename(spec.typespec)}, not {type(value).__name__}") from None
            if spec.choices and value not in spec.choices:
                raise SettingsError(f"{where}: write one of {', '.join(spec.choices)}")
            if name == "confdir":
                logger.warning("%s: too late for its config.yaml, which is not read: use --set confdir=...", where)
            if name == "scripts":  # those that run (this one!) go on
                folder = (file.path or Path()).absolute().parent
                named = [str(folder / Path(script).expanduser()) for script in _strings(value)]
                value = [*options.scripts, *(script for script in named if script not in options.scripts)]  # noqa: PLW2901
            try:
                options.update(**{name: value})
            except exceptions.OptionsError as error:
                # proxyauth, upstream_auth and their like hold passwords
                raise SettingsError(f"{where}: " + str(error).replace(str(value), "...").replace("\n", " ")) from None

    def _listen(self, options: OptManager, modes: list[str]) -> None:
        before = list(options.mode)
        if modes == before:
            return
        original = self._modes[0] if self._modes and self._modes[1] == before else before
        self._modes = (original, modes)
        options.update(mode=modes)

    def _explicit(self, mode: str, options: OptManager) -> str:
        """A mode that says itself where it listens: mitmproxy moves a server only when its mode's text changes."""
        port = _port(mode)
        if port is None or not {"listen_host", "listen_port"} & set(self._file.values):
            return mode
        return _at(mode, options.listen_host, options.listen_port if options.listen_port is not None else port)


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _offline(options: OptManager) -> bool:
    return "server_replay" in options and bool(options.server_replay)


def _current(options: OptManager) -> dict[str, Any]:
    return {name: getattr(options, name) for name in NAMES}


def _strings(value: Any) -> list[str]:
    return list(value)


def _typename(typespec: Any) -> str:
    return {"str": "text", "bool": "true or false", "int": "a number"}.get(name := typecheck.typespec_to_str(typespec), name)
