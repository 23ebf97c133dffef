"""The table of all options: names, defaults, parsers, help and environment variables. Tests compare the documents with it."""

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
"""The newest dated api-version of Azure that is not a preview."""
FILE = "mitm_config.yaml"
MASK = "(hidden)"
"""Value of the token's option while a token is set, because mitmweb shows option values to its users."""


class Option(NamedTuple):
    """One setting. Its name in capitals is its environment variable; `aliases` are read after that."""

    name: str
    type: object  # str, bool or Sequence[str], the types that --set, --options and mitmweb support
    default: str | bool | Sequence[str]
    parse: Callable[[Any], Any]  # converts the option's value; raises SettingsError with the valid values
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
        f"The URL of Azure OpenAI, as in {EXAMPLE}. It may have a path, a prefix of API Management, or be the full URL of a deployment.",
    ),
    Option(
        "azure_openai_token",
        str,
        "",
        backends_config.parse_key,
        "The key for Azure OpenAI. If it is set, clients' keys are ignored; otherwise each client's own key is sent to Azure.",
        ("AZURE_OPENAI_API_KEY",),
    ),
    Option(
        "azure_openai_apiversion",
        str,
        API_VERSION,
        parse_apiversion,
        "Azure's API version: a dated one (2024-10-21, 2025-04-01-preview), v1 or preview. If it is not set, a version in the endpoint's "
        "URL is used.",
        ("OPENAI_API_VERSION",),
    ),
    Option(
        "azure_openai_model_mapper",
        str,
        "",
        Mapper.parse,
        "Maps model names to deployments: model=deployment pairs, separated by commas. A * on the left matches any text, and a * on the "
        "right is replaced by it. Added to the default: gpt-3.5-turbo*=gpt-35-turbo*, whisper-1=whisper, tts-1=tts, tts-1-hd=tts-hd.",
    ),
    Option(
        "azure_openai_proxy_mode",
        str,
        "azure",
        parsers.mode,
        "azure: requests are translated and go to Azure OpenAI. openai: requests go to azure_openai_passthrough_endpoint unchanged.",
    ),
    Option(
        "azure_openai_proxy_address",
        str,
        "",
        parsers.address,
        "The listen address: HOST:PORT, :PORT or PORT. Empty: mitmproxy's default, port 8080 on every interface. "
        "--listen-host, --listen-port and a --mode with @ take precedence.",
    ),
    Option(
        "azure_openai_hosts",
        Sequence[str],
        (),
        parsers.hosts,
        "Hosts, separated by commas, that are handled like api.openai.com if a client requests them through the proxy.",
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
        "Convert Azure's responses to OpenAI's format, without content filter results and without chunks that OpenAI would not "
        "send. Off: forward them unchanged.",
    ),
    Option(
        "azure_openai_max_body",
        str,
        "256m",
        parsers.size,
        "The largest accepted request body, in bytes or with k, m or g. Larger ones are answered with 413.",
    ),
    Option(
        "azure_openai_map_batch_files",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Map the models in uploaded batch files too, line by line. Off: the lines have to name deployments.",
    ),
    Option(
        "azure_openai_discover_models",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "List the resource's deployments in /v1/models too. They are queried in the background with azure_openai_token.",
    ),
    Option(
        "azure_openai_replace_apiversions",
        Sequence[str],
        (),
        parsers.versions,
        "API versions, separated by commas, that are replaced by the configured one in requests of clients of Azure's own API; "
        "`retired` means all versions whose retirement Azure has announced.",
    ),
    Option(
        "azure_openai_moderations_unflagged",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Answer POST /v1/moderations with `flagged: false`, WITHOUT CHECKING THE INPUT, for clients that require a response. Do not set "
        "it if a client relies on the result. Off: a 404 with the message that Azure has no moderations.",
    ),
    Option(
        "azure_openai_allowed_destinations",
        str,
        "local",
        parsers.allowed_destinations,
        "Which other hosts clients may reach through the proxy. local: clients on this machine any host, other clients only public "
        "addresses. public: all clients only public addresses (behind a load balancer on this machine all clients seem local). any: all "
        "clients any host. off: none.",
    ),
    Option(
        "azure_openai_shutdown_timeout",
        str,
        "30",
        parsers.seconds,
        "Seconds that running requests may take to finish after SIGTERM.",
    ),
    Option(
        "azure_openai_max_attempts",
        str,
        "4",
        parsers.count,
        "The greatest number of attempts for one request, including failover to other backends and repaired requests.",
    ),
    Option(
        "azure_openai_repair",
        bool,
        True,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Repair and retry a request that Azure rejects because of a parameter that has another name or can be omitted.",
    ),
    Option(
        "azure_openai_connect_timeout",
        str,
        "10",
        parsers.timeout,
        "Timeout in seconds for connecting to Azure, including TLS.",
    ),
    Option(
        "azure_openai_first_byte_timeout",
        str,
        "600",
        parsers.timeout,
        "Timeout in seconds for the first byte of Azure's response.",
    ),
    Option(
        "azure_openai_chunk_timeout",
        str,
        "300",
        parsers.timeout,
        "Timeout in seconds between two chunks of a response.",
    ),
    Option(
        "azure_openai_pool_size",
        str,
        "100",
        parsers.pool_size,
        "How many idle connections to each backend are kept for the next requests of any client. 0: none, each request opens its own.",
    ),
    Option(
        "azure_openai_pool_idle",
        str,
        "55",
        parsers.timeout,
        "How long a connection to Azure may be idle before it is closed, in seconds.",
    ),
    Option(
        "azure_openai_debug_headers",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Report the backend and the repairs in the headers of each response.",
    ),
    Option(
        "azure_openai_entra",
        str,
        "",
        backends_config.parse_entra,
        f"Authenticate with a token of Microsoft Entra ID instead of a key: {', '.join(backends_config.ENTRA)}.",
    ),
    Option(
        "azure_openai_entra_scope",
        str,
        "",
        str,
        "The scope of the Entra ID token. Empty: the scope for the API version.",
    ),
    Option(
        "azure_openai_keep_bodies",
        str,
        "auto",
        parsers.kept,
        "How much of streamed responses to store for mitmweb, the console and flow files, in bytes or with k, m or g; the oldest are "
        "evicted. off: nothing. auto: 64m in mitmweb and mitmproxy, and in mitmdump while it saves to a file (-w).",
    ),
    Option(
        "azure_openai_replay_ignore",
        Sequence[str],
        list(parsers.REPLAY_IGNORED),
        tuple,
        "With --server-replay: the parts of a request body that may differ from the recording. Members by path, as in metadata or "
        "messages.*.name, and dates and uuids in any string.",
    ),
    Option(
        "azure_openai_replay_paced",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "With --server-replay: send streams with the recorded timing. Off: at once.",
    ),
    Option(
        "azure_openai_fast_path",
        bool,
        True,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Use optimized code in place of parts of mitmproxy, if its version is known: less CPU time, same responses. Off: mitmproxy's code.",
    ),
    Option(
        "azure_openai_passthrough_endpoint",
        str,
        str(OPENAI),
        parsers.openai,
        "The URL that requests go to if azure_openai_proxy_mode is openai.",
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
