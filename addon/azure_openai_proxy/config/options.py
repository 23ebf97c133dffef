"""The table of all options: names, defaults, parsers, help and environment variables. Tests compare the documents with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.api.backend import EXAMPLE, parse_apiversion
from azure_openai_proxy.api.model_mapping import Mapper

from . import backends as backends_config
from . import client_list, origins, otlp, parsers
from . import prices as prices_config
from .parsers import OPENAI

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader


__all__ = ["API_VERSION", "BY_NAME", "FILE", "MASK", "NAMES", "OPTIONS", "Option", "declare"]

API_VERSION = "2024-10-21"
"""The newest dated api-version of Azure that is not a preview."""
FILE = "mitm_config.yaml"
MASK = "(hidden)"
"""Value of an option that contains a secret, because mitmweb shows option values to its users."""


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
        "azure_openai_session_affinity",
        str,
        "auto",
        parsers.session_affinity,
        "auto: with several backends, the requests of a session go to the same one, for its prompt cache. off: each one is routed alone.",
    ),
    Option(
        "azure_openai_affinity_timeout",
        str,
        "3600",
        parsers.timeout,
        "Seconds after the last request of a session until it is no longer bound to a backend.",
    ),
    Option(
        "azure_openai_affinity_sessions",
        str,
        "10000",
        parsers.affinity_sessions,
        "The greatest number of sessions that are bound to a backend.",
    ),
    Option(
        "azure_openai_max_cool_down",
        str,
        "300",
        parsers.timeout,
        "The longest cool-down of a backend in seconds. If Azure's Retry-After is longer, one request probes the backend after that time.",
    ),
    Option(
        "azure_openai_lost_items",
        str,
        "refuse",
        parsers.lost_items,
        "What happens to a conversation with items of a response whose backend is gone. refuse: the client gets an error. drop: it is sent "
        "to another backend without the encrypted reasoning of that one.",
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
        "azure_openai_flex_timeout",
        str,
        "900",
        parsers.timeout,
        "Timeout in seconds for the first byte of the response to a request with `service_tier: flex`. Its chunks may be as far apart.",
    ),
    Option(
        "azure_openai_tier_fallback",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "If no backend serves the `service_tier` of a request, send it once more without it, at the price and speed of the deployment. "
        "Off: the client gets Azure's refusal.",
    ),
    Option(
        "azure_openai_hold_stream",
        str,
        "2",
        parsers.seconds,
        "Seconds for which the beginning of a stream is held at most until its first output or comment, while another backend could take "
        "the request if the stream begins with an overload.",
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
        "Report the backend, the reason for it and the repairs in the headers of each response.",
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
        "azure_openai_metrics",
        str,
        "",
        parsers.metrics_address,
        "The address of the metrics for Prometheus, HOST:PORT, as in 127.0.0.1:9464; the path is /metrics. It needs the extra metrics. "
        "Empty: none.",
    ),
    Option(
        "azure_openai_metrics_series",
        str,
        "200",
        parsers.metrics_series,
        "How many values each label of a metric may have, such as model names; further ones are counted as `other`.",
    ),
    Option(
        "azure_openai_prices",
        str,
        "",
        prices_config.read_file,
        "A YAML file with prices of models in USD per million tokens, which take precedence over the built-in ones. It is read again when "
        "it changes.",
    ),
    Option(
        "azure_openai_ledger",
        str,
        "",
        parsers.ledger,
        "The database that gets a row for each request, as a URL: sqlite:///usage.db or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. "
        "It needs the extra ledger. Empty: none.",
    ),
    Option(
        "azure_openai_shared_state",
        str,
        "",
        parsers.shared_state,
        "The URL of a Redis or Valkey server, through which replicas share the limits and budgets of clients, and cool-downs and repairs: "
        "redis://HOST:PORT, or rediss:// with TLS. It needs the extra redis. Empty: each process has its own.",
    ),
    Option(
        "azure_openai_shared_state_failure",
        str,
        "local",
        parsers.shared_state_failure,
        "What happens to clients with limits while azure_openai_shared_state cannot be reached. local: each process counts on its own. "
        "refuse: their requests get 503.",
    ),
    Option(
        "azure_openai_access_log",
        str,
        "",
        parsers.file,
        "A file that gets one line of JSON for each request, with its tokens and cost, and without keys and texts. -: standard output.",
    ),
    Option(
        "azure_openai_client_auth",
        str,
        "",
        client_list.parse_auth,
        "Whether clients need a key of azure_openai_clients or of the ledger. required: each request does. optional: requests without one "
        "are served too. off: keys are not checked. Empty: required as soon as there is a client, else off.",
    ),
    Option(
        "azure_openai_unpriced",
        str,
        "refuse",
        client_list.parse_unpriced,
        "The response to a client with a budget that requests a model without a price. refuse: a 403. allow: the model's, without cost.",
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
        "azure_openai_otlp",
        str,
        "",
        otlp.url,
        "The URL of an OpenTelemetry collector, as in http://127.0.0.1:4318, which receives metrics and a trace of each request. OTLP over "
        "HTTP; /v1/traces and /v1/metrics are appended, and the OTEL_* variables apply. Empty: none.",
    ),
    Option(
        "azure_openai_otlp_content",
        bool,
        False,  # noqa: FBT003 - the default of a row
        lambda value: value,
        "Export the texts of requests and responses with the spans of azure_openai_otlp.",
    ),
    Option(
        "azure_openai_semconv",
        str,
        "1.41",
        otlp.semconv,
        "The generation of OpenTelemetry's GenAI conventions that metrics and spans follow, in OTLP and in Prometheus: 1.41 or genai-0.1.",
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
