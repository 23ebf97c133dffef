"""The table of endpoints: every OpenAI operation and its Azure form. No other module knows paths.

An operation without a row goes to the same path below `/openai/v1`, and its model is the body's `model`. The table lists the exceptions. A
path is written without `/v1`; `{...}` matches one segment and `/**` matches the path and everything below it. An exact segment has
precedence over `{...}`, and both over `/**`; a row for one method has precedence over one for `*`.

`dated` is the path below `/openai` of the dated API, available from the versions `ga` and `preview` on. With an older version, or without
one, the operation goes to v1. Operations that v1 lacks (`v1=""`) always go to the dated API.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

__all__ = ["ENDPOINTS", "IN_SESSION", "NEWEST_GA", "NEWEST_PREVIEW", "RETIRED", "RULE", "Endpoint", "Form", "find", "segments", "values"]

NEWEST_GA = "2024-10-21"
NEWEST_PREVIEW = "2025-04-01-preview"  # the last version of the dated API
RETIRED = frozenset(f"2023-{date}-preview" for date in ("03-15", "07-01", "08-01", "09-01", "12-01"))  # as announced for 2024-07-01

_NEVER = "9"  # later than any date
_SAME = "{path}"
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
    needs_model: bool = False  # Azure refuses the request without a model
    unversioned: bool = False  # v1 refuses an api-version for this operation
    beta: str = ""  # path below /openai, in the newest preview, for clients of the preview protocol of realtime
    # chat: events that end in [DONE]; typed: events with names; secret: JSON with a key that Azure created for the client
    answer: Literal["json", "chat", "typed", "binary", "secret"] = "json"
    by: Literal["azure", "models", "engines", "billing", "moderations", "nobody"] = "azure"
    instead: str = ""  # the alternative that the error names for an operation that Azure lacks
    twice: bool = False  # a repeated request is harmless

    @property
    def repeatable(self) -> bool:
        """Return whether the request can be retried: it creates no resource, a model only answers."""
        return self.twice or self.needs_model

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

_SECRET: dict[str, Any] = {"unversioned": True, "answer": "secret"}

ENDPOINTS = (
    # Model calls. In the dated API the path has the deployment.
    *_rows("POST /chat/completions", dated=_DEPLOYED, **_CHAT, needs_model=True, answer="chat"),
    *_rows("POST /completions", dated=_DEPLOYED, **_FIRST, needs_model=True, answer="chat"),
    *_rows("POST /embeddings", dated=_DEPLOYED, **_FIRST, needs_model=True),
    *_rows("POST /images/generations", dated=_DEPLOYED, **_IMAGES, answer="typed", twice=True),
    *_rows("POST /images/edits", dated=_DEPLOYED, preview="2025-04-01", model_in="form", answer="typed", twice=True),
    *_rows("POST /audio/speech", dated=_DEPLOYED, preview="2024-02-15", needs_model=True, answer="binary"),
    *_rows("POST /audio/transcriptions", dated=_DEPLOYED, **_AUDIO, model_in="form", answer="typed", twice=True),
    *_rows("POST /audio/translations", dated=_DEPLOYED, **_AUDIO, model_in="form", twice=True),
    *_rows("POST /responses", "GET /responses/{response_id}", dated=_SAME, preview="2025-03-01", answer="typed", twice=True),
    *_rows("DELETE /responses/{response_id}", "GET /responses/{response_id}/input_items", dated=_SAME, preview="2025-03-01"),
    *_rows("POST /videos", model_in="form"),
    _engine("/completions", **_FIRST, answer="chat"),
    _engine("/chat/completions", **_CHAT, answer="chat"),
    _engine("/embeddings", **_FIRST),
    # Resources that Azure stores.
    *_rows("GET /chat/completions", "* /chat/completions/**", dated=_SAME, preview="2025-02-01"),
    *_rows("* /files/**", dated=_SAME, **_FIRST),
    *_rows("GET /files/{file_id}/content", dated=_SAME, **_FIRST, answer="binary"),
    *_rows("GET /containers/{container_id}/files/{file_id}/content", "GET /videos/{video_id}/content", answer="binary"),
    *_rows("GET /skills/{skill_id}/content", "GET /skills/{skill_id}/versions/{version}/content", answer="binary"),
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
    *_rows("* /threads/**", dated=_SAME, preview="2024-02-15", answer="typed"),
    # Realtime. A session names its model in the query, in its configuration, or in the first frame.
    *_rows("WS /responses", models=("model", "response.model"), model_in="frames"),
    *_rows("WS /realtime", models=(*IN_SESSION, "response.model"), model_in="query", unversioned=True, beta="/realtime"),
    *_rows("WS /realtime/translations", models=IN_SESSION, model_in="query", unversioned=True),
    *_rows("* /realtime/**", unversioned=True),
    *_rows("POST /realtime/calls", models=IN_SESSION, model_in="form", unversioned=True),
    *_rows("POST /realtime/calls/{call_id}/accept", models=("model", *_TRANSCRIBERS), unversioned=True),
    *_rows("POST /realtime/client_secrets", "POST /realtime/translations/client_secrets", models=IN_SESSION, **_SECRET),
    *_rows("POST /realtime/sessions", dated="/realtimeapi/sessions", preview="2025-04-01", models=("model", *_TRANSCRIBERS), **_SECRET),
    *_rows("POST /realtime/transcription_sessions", dated=_TRANSCRIPTIONS, preview="2025-04-01", models=_TRANSCRIBERS, **_SECRET),
    *_rows(f"POST {_TRANSCRIPTIONS}", models=_TRANSCRIBERS, answer="secret"),  # path of Azure's own clients
    *_rows("POST /realtimeapi/sessions", models=("model", *_TRANSCRIBERS), answer="secret"),
    *_rows("WS /live/sessions", "WS /live/sessions/{id}/attach", "WS /live/sessions/{id}/fork", models=IN_SESSION, model_in="frames"),
    *_rows("POST /live/sessions", "POST /live/sessions/{id}/accept", models=IN_SESSION),
    *_rows("GET /live/sessions/{id}/content", answer="binary"),
    # Other paths at Azure.
    *_rows("* /webhook_endpoints/**", v1="/dashboard{path}"),
    *_rows("POST /webhook_endpoints", v1="/dashboard{path}", answer="secret"),
    # Answered by the proxy.
    *_rows("GET /models", "GET /models/{model}", model_in="path", by="models"),
    *_rows("GET /engines", "GET /engines/{engine}", model_in="path", by="engines"),
    *_rows("DELETE /models/{model}", model_in="path", models=()),
    *_rows("GET /dashboard/billing/**", by="billing"),
    *_rows("POST /dashboard/webhook_endpoints", answer="secret"),  # same prefix, but sent to Azure
    *_rows("POST /moderations", by="moderations", instead="Azure AI Content Safety, or the content filter that every deployment has"),
    # Not available at Azure.
    *_rows("* /organization/**", "* /projects/**", by="nobody", instead="Azure's own administration: the portal, `az cognitiveservices`"),
    *_rows("* /agents/**", by="nobody", instead="Foundry Agent Service, another API"),
    *_rows("POST /images/variations", by="nobody", instead="POST /v1/images/edits"),
    *_rows("POST /edits", "POST /engines/{engine}/edits", by="nobody", instead="a chat"),
    *_rows("* /fine-tunes/**", by="nobody", instead="/v1/fine_tuning/jobs"),
    *_rows("POST /engines/{engine}/search", "POST /answers", "POST /classifications", by="nobody", instead="/v1/embeddings, or a chat"),
    *_rows("* /audio/voices/**", "* /audio/voice_consents/**", "* /videos/characters/**", by="nobody"),
    *_rows("POST /videos/edits", "POST /videos/extensions", by="nobody"),
    *_rows("* /vaults/**", "* /chatkit/**", "* /safety/**", "* /decisions/**", "* /content_provenance_checks/**", by="nobody"),
    *_rows("* /webhook_event_types/**", by="nobody"),
    *_rows("POST /webhook_endpoints/{id}/rotate_secret", "POST /webhook_endpoints/{id}/test", by="nobody"),
    # The default for unknown operations.
    *_rows("* /**"),
)


def segments(path: str) -> tuple[str, ...]:
    """Return the segments of a path. Repeated and trailing slashes are ignored."""
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
RULE = _ROOT.tails["*"]


def find(method: str, parts: tuple[str, ...]) -> Endpoint:
    """Return the row for an operation; `RULE` if no other row matches."""
    return _ROOT.find("GET" if method == "HEAD" else method, parts) or RULE


def values(row: Endpoint, parts: tuple[str, ...]) -> dict[str, str]:
    """Return the values of the row's `{...}` in the path, as the client wrote them."""
    return {name[1:-1]: part for name, part in zip(segments(row.path), parts, strict=False) if name[0] == "{"}
