"""THE table of options: names, defaults, environment variables, help. The documents and the settings are made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.api.backend import EXAMPLE, parse_apiversion
from azure_openai_proxy.api.model_mapping import Mapper

from . import backends as backends_config
from . import origins, parsers
from .parsers import OPENAI

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader


__all__ = ["API_VERSION", "BY_NAME", "FILE", "MASK", "NAMES", "OPTIONS", "Option", "declare"]

API_VERSION = "2024-10-21"
"""Azure's newest dated version that is no preview."""
FILE = "mitm_config.yaml"
MASK = "(hidden)"
"""Stands in the token's option while one is set: mitmweb shows option values to whoever may open it."""


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
        parsers.endpoint,
        f"Where Azure OpenAI is, as in {EXAMPLE}. A path, a prefix of API Management and the full URL of a deployment are understood.",
    ),
    Option(
        "azure_openai_token",
        str,
        "",
        backends_config.parse_key,
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
        parsers.mode,
        "azure: requests are translated and go to Azure OpenAI. openai: they go to azure_openai_passthrough_endpoint unchanged.",
    ),
    Option(
        "azure_openai_proxy_address",
        str,
        "",
        parsers.address,
        "Where to listen: HOST:PORT, :PORT or PORT. Empty: where mitmproxy listens by itself, port 8080 on every interface. "
        "--listen-host, --listen-port and a --mode with @ beat it.",
    ),
    Option(
        "azure_openai_hosts",
        Sequence[str],
        (),
        parsers.hosts,
        "Hosts that are served like api.openai.com when a client goes through the proxy to them, separated by commas.",
    ),
    Option(
        "azure_openai_allowed_origins",
        Sequence[str],
        (),
        origins.parse,
        "Web pages that may use the proxy, as origins separated by commas (https://chat.example.com, http://*.example.com:*), beside local "
        "ones: localhost, loopback addresses and applications. * alone: all pages. Empty: local ones, and all while clients bring their "
        "own key.",
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
        parsers.size,
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
        parsers.versions,
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
        "azure_openai_allowed_destinations",
        str,
        "local",
        parsers.allowed_destinations,
        "Where clients are led that go through the proxy to other hosts than OpenAI's. local: those of this machine anywhere, all others "
        "to public addresses only. public: everyone to public addresses only (behind a balancer on this machine all look local). any: "
        "everyone anywhere. off: nobody anywhere.",
    ),
    Option(
        "azure_openai_shutdown_timeout",
        str,
        "30",
        parsers.seconds,
        "Seconds that what is running may take to finish after SIGTERM.",
    ),
    Option(
        "azure_openai_max_attempts",
        str,
        "4",
        parsers.count,
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
        parsers.timeout,
        "Seconds until a connection to Azure must be there, TLS included.",
    ),
    Option(
        "azure_openai_first_byte_timeout",
        str,
        "600",
        parsers.timeout,
        "Seconds until Azure must begin to answer.",
    ),
    Option(
        "azure_openai_chunk_timeout",
        str,
        "300",
        parsers.timeout,
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
        backends_config.parse_entra,
        f"Ask Azure with a token of Microsoft Entra ID instead of a key: {', '.join(backends_config.ENTRA)}.",
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
        parsers.kept,
        "How much of streamed answers to keep for mitmweb, the console and saved files: bytes, or with k, m or g; the oldest give way. "
        "off: nothing. auto: 64m in mitmweb and mitmproxy, and in mitmdump while it saves to a file (-w).",
    ),
    Option(
        "azure_openai_replay_ignore",
        Sequence[str],
        list(parsers.REPLAY_IGNORED),
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
        "azure_openai_fast_path",
        bool,
        True,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Take shortcuts through mitmproxy, on a mitmproxy that is known: less processor time, the same answers. Off: mitmproxy's own ways.",
    ),
    Option(
        "azure_openai_passthrough_endpoint",
        str,
        str(OPENAI),
        parsers.openai,
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


def declare(loader: Loader) -> None:
    for option in OPTIONS:
        loader.add_option(option.name, option.type, option.default, option.help)  # type: ignore[arg-type]
