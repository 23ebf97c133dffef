"""The table of endpoints: every OpenAI operation and its Azure form. No other module knows paths.

An operation without a row goes to the same path below `/openai/v1`, and its model is the body's `model`. The table lists the exceptions. A
path is written without `/v1`; `{...}` matches one segment and `/**` matches the path and everything below it. An exact segment has
precedence over `{...}`, and both over `/**`; a row for one method has precedence over one for `*`.

`dated` is the path below `/openai` of the dated API, available from the versions `ga` and `preview` on. With an older version, or without
one, the operation goes to v1. Operations that v1 lacks (`v1=""`) always go to the dated API.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile
from typing import Any, Literal, NamedTuple

__all__ = [
    "DEFAULT",
    "ENDPOINTS",
    "IN_SESSION",
    "NEWEST_GA",
    "NEWEST_PREVIEW",
    "RETIRED",
    "Endpoint",
    "Form",
    "find",
    "gen_ai_operation",
    "hides_model",
    "is_unmetered",
    "label",
    "segments",
    "values",
]

NEWEST_GA = "2024-10-21"
NEWEST_PREVIEW = "2025-04-01-preview"  # the last version of the dated API
RETIRED = frozenset(f"2023-{date}-preview" for date in ("03-15", "07-01", "08-01", "09-01", "12-01"))  # as announced for 2024-07-01

_NEVER = "9"  # later than any date
_SAME = "{path}"
_OWN = "="
_DEPLOYED = "/deployments/{deployment}{path}"
_RUN = "/evals/{eval_id}/runs/{run_id}"
_TRANSCRIPTIONS = "/realtimeapi/transcription_sessions"
# A session also names the model that transcribes the user's audio. The path differs between GA and the previews.
_TRANSCRIBERS = ("audio.input.transcription.model", "input_audio_transcription.model")
IN_SESSION = tuple(f"session.{place}" for place in ("model", *_TRANSCRIBERS))
"""The places of models in a session, inside a frame or a body."""


class Form(NamedTuple):
    """The Azure form of an operation: a path with the placeholders `{path}`, `{deployment}` and the row's own `{...}`."""

    path: str
    version: str  # api-version in the query; "" for none


class Endpoint(NamedTuple):
    """One row of the table. `method` is an HTTP method, `*`, or `WS` for a WebSocket."""

    method: str
    path: str
    v1: str = _SAME
    dated: str = ""
    ga: str = _NEVER
    preview: str = _NEVER
    models: tuple[str, ...] = ("model",)  # places of model names in JSON; `*` is any item of a list
    model_in: Literal["body", "form", "path", "query", "frames"] = "body"
    in_query_too: bool = False  # the query may name a model besides
    needs_model: bool = False  # Azure refuses the request without a model
    unversioned: bool = False  # v1 refuses an api-version for this operation
    beta: str = ""  # path below /openai, in the newest preview, for clients of the preview protocol of realtime
    # chat: events that end in [DONE]; typed: events with names; secret: JSON with a key that Azure created for the client
    response_kind: Literal["json", "chat", "typed", "binary", "secret"] = "json"
    handled_by: Literal["azure", "models", "engines", "billing", "moderations", "unsupported"] = "azure"
    instead: str = ""  # the alternative that the error names for an operation that Azure lacks
    safe_to_repeat: bool = False  # a repeated request is harmless
    gen_ai: str = ""  # name in OpenTelemetry's GenAI conventions, if a model answers the operation; `_OWN`: the operation's label
    usage: bool = False  # a complete successful response reports its usage
    sessions: bool = False  # the requests of a session have a common beginning, which Azure caches

    @property
    def by_model(self) -> bool:
        """Return whether a model answers the operation."""
        return bool(self.gen_ai)

    @property
    def repeatable(self) -> bool:
        """Return whether the request can be retried: it creates no resource, a model only answers."""
        return self.safe_to_repeat or self.needs_model

    def form(self, version: str, *, model: bool = True, beta: bool = False) -> Form:
        """Return the Azure form for the configured `version`: a date, "v1" or "preview". `model` says whether the request names one."""
        if beta:
            return Form(f"/openai{self.beta}", NEWEST_PREVIEW)
        dated = version not in ("v1", "preview") and self.in_dated(version)
        if self.v1 and not (dated and (model or "{deployment}" not in self.dated)):
            return Form(f"/openai/v1{self.v1}", "preview" if version == "preview" and not self.unversioned else "")
        if not dated:
            version = NEWEST_GA if self.in_dated(NEWEST_GA) else NEWEST_PREVIEW
        return Form(f"/openai{self.dated}", version)

    def in_dated(self, version: str) -> bool:
        """Return whether the dated API has the operation in this version."""
        return version >= (self.preview if version.endswith("-preview") else self.ga)


def _rows(*operations: str, **columns: Any) -> tuple[Endpoint, ...]:
    """Return a row for each `METHOD /path`, with the same columns."""
    pairs = (operation.split() for operation in operations)
    return tuple(Endpoint(method, path, **columns) for method, path in pairs)


def _engine(operation: str, **columns: Any) -> Endpoint:
    """Return the row for an operation of the first API, which had the model in the path."""
    dated = _DEPLOYED.replace("{path}", operation)
    return Endpoint("POST", f"/engines/{{engine}}{operation}", operation, dated, model_in="path", needs_model=True, **columns)


# First versions of the dated API with each group of operations.
_FIRST = {"ga": "2022-12-01", "preview": "2022-03-01"}
_CHAT = {"ga": "2023-05-15", "preview": "2023-03-15"}
_AUDIO = {"ga": "2024-02-01", "preview": "2023-09-01"}
_IMAGES = {"ga": "2024-02-01", "preview": "2023-12-01"}
_TUNING = {"ga": "2024-10-21", "preview": "2023-10-01"}
_BATCHES = {"ga": "2024-10-21", "preview": "2024-07-01"}
_UPLOADS = {"ga": "2024-10-21", "preview": "2024-08-01"}

_SECRET: dict[str, Any] = {"unversioned": True, "response_kind": "secret"}

# Names of the GenAI conventions, for usage records.
_SPEAKS: dict[str, Any] = {"gen_ai": "chat", "usage": True}
_CHATS: dict[str, Any] = {**_SPEAKS, "sessions": True}
_COMPLETES: dict[str, Any] = {"gen_ai": "text_completion", "usage": True, "sessions": True}
_EMBEDS: dict[str, Any] = {"gen_ai": "embeddings", "usage": True}
_FETCHES: dict[str, Any] = {"gen_ai": "fetch_response"}
_USES: dict[str, Any] = {"gen_ai": _OWN, "usage": True}

ENDPOINTS = (
    # Model calls. In the dated API the path has the deployment.
    *_rows("POST /chat/completions", dated=_DEPLOYED, **_CHAT, needs_model=True, response_kind="chat", **_CHATS),
    *_rows("POST /completions", dated=_DEPLOYED, **_FIRST, needs_model=True, response_kind="chat", **_COMPLETES),
    *_rows("POST /embeddings", dated=_DEPLOYED, **_FIRST, needs_model=True, **_EMBEDS),
    *_rows("POST /images/generations", dated=_DEPLOYED, **_IMAGES, response_kind="typed", safe_to_repeat=True, **_USES),
    *_rows(
        "POST /images/edits", dated=_DEPLOYED, preview="2025-04-01", model_in="form", response_kind="typed", safe_to_repeat=True, **_USES
    ),
    *_rows("POST /audio/speech", dated=_DEPLOYED, preview="2024-02-15", needs_model=True, response_kind="binary", gen_ai=_OWN),
    *_rows("POST /audio/transcriptions", dated=_DEPLOYED, **_AUDIO, model_in="form", response_kind="typed", safe_to_repeat=True, **_USES),
    *_rows("POST /audio/translations", dated=_DEPLOYED, **_AUDIO, model_in="form", safe_to_repeat=True, gen_ai=_OWN),
    *_rows("POST /responses", dated=_SAME, preview="2025-03-01", response_kind="typed", safe_to_repeat=True, **_CHATS),
    *_rows("GET /responses/{response_id}", dated=_SAME, preview="2025-03-01", response_kind="typed", safe_to_repeat=True, **_FETCHES),
    *_rows("POST /responses/compact", **_CHATS),
    *_rows("DELETE /responses/{response_id}", "GET /responses/{response_id}/input_items", dated=_SAME, preview="2025-03-01"),
    *_rows("POST /videos", model_in="form", gen_ai=_OWN),
    _engine("/completions", **_FIRST, response_kind="chat", **_COMPLETES),
    _engine("/chat/completions", **_CHAT, response_kind="chat", **_CHATS),
    _engine("/embeddings", **_FIRST, **_EMBEDS),
    # Resources that Azure stores.
    *_rows("GET /chat/completions", "* /chat/completions/**", dated=_SAME, preview="2025-02-01"),
    *_rows("* /files/**", dated=_SAME, **_FIRST),
    *_rows("GET /files/{file_id}/content", dated=_SAME, **_FIRST, response_kind="binary"),
    *_rows("GET /containers/{container_id}/files/{file_id}/content", "GET /videos/{video_id}/content", response_kind="binary"),
    *_rows("GET /skills/{skill_id}/content", "GET /skills/{skill_id}/versions/{version}/content", response_kind="binary"),
    *_rows("* /uploads/**", v1="", dated=_SAME, **_UPLOADS),
    *_rows("* /batches/**", dated=_SAME, **_BATCHES),
    *_rows("* /vector_stores/**", dated=_SAME, preview="2024-05-01"),
    # Fine-tuning starts from a base model, which is not a deployment.
    *_rows("* /fine_tuning/jobs/**", dated=_SAME, **_TUNING, models=()),
    *_rows("POST /fine_tuning/jobs/{job_id}/pause", "POST /fine_tuning/jobs/{job_id}/resume", dated=_SAME, preview="2025-04-01"),
    *_rows(
        "POST /fine_tuning/alpha/graders/run", "POST /fine_tuning/alpha/graders/validate", models=("grader.model", "grader.graders.model")
    ),
    *_rows("* /evals/**", dated=_SAME, preview="2025-04-01", models=("testing_criteria.*.model", "data_source.model")),
    *_rows("POST /evals/{eval_id}/runs/{run_id}/cancel", v1=_RUN, dated=_RUN, preview="2025-04-01"),
    # Assistants: only in the dated previews, and retired.
    *_rows("* /assistants/**", v1="", dated=_SAME, preview="2024-02-15"),
    *_rows("* /threads/**", dated=_SAME, preview="2024-02-15", response_kind="typed"),
    # Realtime. A session names its model in the query, in its configuration, or in the first frame.
    *_rows("WS /responses", models=("model", "response.model"), model_in="frames", **_CHATS),
    *_rows("WS /realtime", models=(*IN_SESSION, "response.model"), model_in="query", unversioned=True, beta="/realtime", **_SPEAKS),
    *_rows("WS /realtime/translations", models=IN_SESSION, model_in="query", unversioned=True),
    *_rows("* /realtime/**", unversioned=True),
    *_rows("POST /realtime/calls", models=IN_SESSION, model_in="form", in_query_too=True, unversioned=True),
    *_rows("POST /realtime/calls/{call_id}/accept", models=("model", *_TRANSCRIBERS), unversioned=True),
    *_rows("POST /realtime/client_secrets", "POST /realtime/translations/client_secrets", models=IN_SESSION, **_SECRET),
    *_rows("POST /realtime/sessions", dated="/realtimeapi/sessions", preview="2025-04-01", models=("model", *_TRANSCRIBERS), **_SECRET),
    *_rows("POST /realtime/transcription_sessions", dated=_TRANSCRIPTIONS, preview="2025-04-01", models=_TRANSCRIBERS, **_SECRET),
    *_rows(f"POST {_TRANSCRIPTIONS}", models=_TRANSCRIBERS, response_kind="secret"),  # path of Azure's own clients
    *_rows("POST /realtimeapi/sessions", models=("model", *_TRANSCRIBERS), response_kind="secret"),
    *_rows("WS /live/sessions", "WS /live/sessions/{id}/attach", "WS /live/sessions/{id}/fork", models=IN_SESSION, model_in="frames"),
    *_rows("POST /live/sessions", "POST /live/sessions/{id}/accept", models=IN_SESSION),
    *_rows("GET /live/sessions/{id}/content", response_kind="binary"),
    # Other paths at Azure.
    *_rows("* /webhook_endpoints/**", v1="/dashboard{path}"),
    *_rows("POST /webhook_endpoints", v1="/dashboard{path}", response_kind="secret"),
    # Answered by the proxy.
    *_rows("GET /models", "GET /models/{model}", model_in="path", handled_by="models"),
    *_rows("GET /engines", "GET /engines/{engine}", model_in="path", handled_by="engines"),
    *_rows("DELETE /models/{model}", model_in="path", models=()),
    *_rows("GET /dashboard/billing/**", handled_by="billing"),
    *_rows("POST /dashboard/webhook_endpoints", response_kind="secret"),  # same prefix, but sent to Azure
    *_rows(
        "POST /moderations", handled_by="moderations", instead="Azure AI Content Safety, or the content filter that every deployment has"
    ),
    # Not available at Azure.
    *_rows(
        "* /organization/**",
        "* /projects/**",
        handled_by="unsupported",
        instead="Azure's own administration: the portal, `az cognitiveservices`",
    ),
    *_rows("* /agents/**", handled_by="unsupported", instead="Foundry Agent Service, another API"),
    *_rows("POST /images/variations", handled_by="unsupported", instead="POST /v1/images/edits"),
    *_rows("POST /edits", "POST /engines/{engine}/edits", handled_by="unsupported", instead="a chat"),
    *_rows("* /fine-tunes/**", handled_by="unsupported", instead="/v1/fine_tuning/jobs"),
    *_rows(
        "POST /engines/{engine}/search",
        "POST /answers",
        "POST /classifications",
        handled_by="unsupported",
        instead="/v1/embeddings, or a chat",
    ),
    *_rows("* /audio/voices/**", "* /audio/voice_consents/**", "* /videos/characters/**", handled_by="unsupported"),
    *_rows("POST /videos/edits", "POST /videos/extensions", handled_by="unsupported"),
    *_rows("* /vaults/**", "* /chatkit/**", "* /safety/**", "* /decisions/**", "* /content_provenance_checks/**", handled_by="unsupported"),
    *_rows("* /webhook_event_types/**", handled_by="unsupported"),
    *_rows("POST /webhook_endpoints/{id}/rotate_secret", "POST /webhook_endpoints/{id}/test", handled_by="unsupported"),
    # The default for unknown operations.
    *_rows("* /**"),
)


# Work whose tokens no response of this API reports in time.
_UNMETERED = tuple(
    (method, tuple(part for part in path.split("/") if part))
    for method, path in (
        operation.split()
        for operation in (
            *("POST /batches", "POST /fine_tuning/jobs", "POST /fine_tuning/jobs/*/resume", "POST /fine_tuning/alpha/graders/run"),
            *("POST /evals", "POST /evals/*/runs", "POST /evals/*/runs/*", "POST /videos/*/remix"),
            *("POST /threads/runs", "POST /threads/*/runs", "POST /threads/*/runs/*/submit_tool_outputs"),
            *("POST /realtime/client_secrets", "POST /realtime/translations/client_secrets", "POST /realtime/sessions"),
            *("POST /realtime/transcription_sessions", "POST /realtimeapi/sessions", "POST /realtimeapi/transcription_sessions"),
            *("POST /realtime/calls", "POST /realtime/calls/*/accept", "POST /live/sessions", "POST /live/sessions/*/accept"),
            *("WS /realtime/translations", "WS /live/sessions", "WS /live/sessions/*/attach", "WS /live/sessions/*/fork"),
        )
    )
)


_BATCH = (("POST", ("batches",)),)
_READING = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_ESCAPED = re.compile(r"%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])", re.IGNORECASE)


def is_unmetered(method: str, parts: tuple[str, ...]) -> bool:
    """Return whether the operation starts work whose tokens the proxy does not see in time: batches, jobs, runs, realtime calls, and work
    that it does not know.
    """
    if _is_one_of(_UNMETERED, method, parts) or _in_other_case(method, parts):
        return True
    row = find(method, parts)
    return row is DEFAULT and label(row, "/".join(parts)) == "other" and method.upper() not in _READING


def hides_model(method: str, parts: tuple[str, ...]) -> bool:
    """Return whether the proxy does not see the models of the operation: those of batches are in a file."""
    return _is_one_of(_BATCH, method, parts) or _in_other_case(method, parts)


def _is_one_of(operations: tuple[tuple[str, tuple[str, ...]], ...], method: str, parts: tuple[str, ...]) -> bool:
    """Return whether an operation is in a list. A server may compare without case."""
    method, parts = method.upper(), _lower(parts)
    return any(
        method == one and len(pattern) == len(parts) and all(name in ("*", part) for name, part in zip(pattern, parts, strict=True))
        for one, pattern in operations
    )


def _in_other_case(method: str, parts: tuple[str, ...]) -> bool:
    """Return whether a server that compares without case would take the operation for one that a model answers."""
    return find(method.upper(), _lower(parts)).by_model and not find(method, parts).by_model


def _lower(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([part.lower() for part in parts])


def segments(path: str) -> tuple[str, ...]:
    """Return the segments of a path. Repeated and trailing slashes are ignored, and characters are decoded that need no escape."""
    if "%" in path:
        path = _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), path)
    return tuple(part for part in path.split("/") if part)


class _Node:
    """A segment in the tree of the table's paths."""

    __slots__ = ("below", "rows", "tails", "value")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.value: _Node | None = None  # `{...}`
        self.rows: dict[str, Endpoint] = {}
        self.tails: dict[str, Endpoint] = {}  # `/**`

    def add(self, row: Endpoint) -> None:
        node, parts = self, segments(row.path)
        for part in parts:
            if part == "**":
                break
            if part[0] == "{":
                node.value = node.value or _Node()
                node = node.value
            else:
                node = node.below.setdefault(part, _Node())
        rows = node.tails if parts[-1] == "**" else node.rows
        assert row.method not in rows, f"two rows for {row.method} {row.path}"
        rows[row.method] = row

    def find(self, method: str, parts: tuple[str, ...]) -> Endpoint | None:
        found = None
        if not parts:
            found = self.rows.get(method) or self.rows.get("*")
        else:
            for node in (self.below.get(parts[0]), self.value):
                if node and (found := node.find(method, parts[1:])):
                    break
        return found or self.tails.get(method) or self.tails.get("*")


_ROOT = _Node()
for _row in ENDPOINTS:
    _ROOT.add(_row)
DEFAULT = _ROOT.tails["*"]


def find(method: str, parts: tuple[str, ...]) -> Endpoint:
    """Return the row for an operation; `DEFAULT` if no other row matches."""
    return _ROOT.find("GET" if method == "HEAD" else method, parts) or DEFAULT


# First segments of operations without a row, which are OpenAI's nevertheless.
_WITHOUT_ROW = frozenset({"containers", "conversations", "responses", "skills", "videos"})


def label(row: Endpoint, path: str) -> str:
    """Return the name of the operation for logs and metrics: OpenAI's family of paths, such as `chat.completions`.

    The set of names is bounded, whatever clients send: any other operation is `other`.
    """
    if row is DEFAULT:
        first = next(iter(segments(path)), "")
        return first if first in _WITHOUT_ROW else "other"
    return _label(row.path)


@cache
def _label(path: str) -> str:
    parts = segments(path)
    if parts[0] == "engines" and len(parts) > 2:
        parts = parts[2:]  # the same operation in the first API
    return ".".join(takewhile(lambda part: part[0] not in "{*", parts))


def gen_ai_operation(row: Endpoint, path: str) -> str:
    """Return the operation's name in the GenAI conventions; the label if they have none."""
    return label(row, path) if row.gen_ai in ("", _OWN) else row.gen_ai


def values(row: Endpoint, parts: tuple[str, ...]) -> dict[str, str]:
    """Return the values of the row's `{...}` in the path, as the client wrote them."""
    return {name[1:-1]: part for name, part in zip(segments(row.path), parts, strict=False) if name[0] == "{"}
