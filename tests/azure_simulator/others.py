"""Answers that are like no others: the catalogue of models, realtime and live sessions by HTTP, graders, a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors, kept, kinds, models, usage
from .answers import DONE, Answer, event, json_answer

if TYPE_CHECKING:
    from .calls import Call
    from .models import Model

__all__ = [
    "batch",
    "call",
    "catalogue",
    "client_secret",
    "completed",
    "created",
    "deployments",
    "done",
    "eval_deleted",
    "evaluation",
    "grade",
    "left",
    "model_of",
    "nothing",
    "nothing_in_json",
    "pages",
    "realtime_session",
    "run",
    "run_deleted",
    "search",
    "session",
    "transcription_session",
    "translation_secret",
    "tuning",
    "version_deleted",
    "webhook",
]

EPHEMERAL = "ek_68af296e8e408191a1120ab6383263c2"
SIGNING = "whsec_c2RmZ2hqa2xxd2VydHl1aW9w"
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"


def nothing(call: Call, model: Model) -> Answer:
    return Answer(200, ())


def nothing_in_json(call: Call, model: Model) -> Answer:
    return json_answer({})


# -- models ---------------------------------------------------------------------------------------------------------------------------


def _described(name: str, call: Call) -> dict[str, Any]:
    """The dated API has a shape of its own."""
    if call.form == "v1":
        return {**kinds.MODEL.value, "id": name}
    able = {"chat_completion": True, "completion": False, "embeddings": False, "fine_tune": False, "inference": True}
    return {
        "capabilities": able,
        "created_at": kinds.NOW,
        "deprecation": {"inference": kinds.NOW + 10**7},
        "id": name,
        "lifecycle_status": "generally-available",
        "object": "model",
        "status": "succeeded",
        "updated_at": kinds.NOW,
    }


def catalogue(call: Call, model: Model) -> Answer:
    """The models of the region, deployed or not."""
    return json_answer({"data": [_described(name, call) for name in models.CATALOGUE], "object": "list"})


def model_of(call: Call, model: Model) -> Answer:
    return json_answer(_described(call.values["id"], call))


def deployments(call: Call, model: Model) -> Answer:
    data = [
        {
            "created_at": kinds.NOW,
            "id": name,
            "model": deployed,
            "object": "deployment",
            "owner": "organization-owner",
            "scale_settings": {"scale_type": "standard"},
            "status": "succeeded",
            "updated_at": kinds.NOW,
        }
        for name, deployed in call.deployments.items()
    ]
    return json_answer({"data": data, "object": "list"})


# -- files, fine-tuning, vector stores, conversations, threads, webhooks ---------------------------------------------------------------


def created(kind: kinds.Kind, call: Call, model: Model, field: str = "file") -> Answer:
    """An object made of an upload, or of JSON that names one."""
    upload = call.multipart and call.multipart.upload(field)
    if not upload:
        return kept.one(kind, call, model)
    told = {"bytes": len(upload.content), "filename": upload.filename}
    return kept.one(kind, call, model, **{name: value for name, value in told.items() if name in kind.value})


def completed(call: Call, model: Model) -> Answer:
    return kept.one(kinds.UPLOAD, call, model, status="completed", file=kept.value(kinds.FILE, call, id="file-1"))


def batch(call: Call, model: Model) -> Answer:
    """A batch; one whose id begins with `batch_done` is completed, and says what it used."""
    if not call.values["id"].startswith("batch_done"):
        return kept.one(kinds.BATCH, call, model)
    ended = {"status": "completed", "output_file_id": "file-2", "request_counts": {"completed": 1, "failed": 0, "total": 1}}
    return json_answer(kept.value(kinds.BATCH, call, id=call.values["id"], model="gpt-4o-2024-11-20", usage=usage.BATCH, **ended))


def done(kind: kinds.Kind, call: Call, model: Model) -> Answer:
    """A list that is made in one go."""
    value = kept.value(kind, call)
    return json_answer({"data": [value], "first_id": value["id"], "has_more": False, "last_id": value["id"], "object": "list"})


def grade(call: Call, model: Model) -> Answer:
    names = ["formula_parse", "invalid_variable", "model_grader_parse", "model_grader_refusal", "model_grader_server", "other"]
    names += ["python_grader_runtime", "python_grader_server", "sample_parse", "truncated_observation", "unresponsive_reward"]
    details = ["model_grader_server_error_details", "python_grader_runtime_error_details", "python_grader_server_error_type"]
    wrong = {**{f"{name}_error": False for name in names}, **dict.fromkeys(details)}
    metadata = {"errors": wrong, "execution_time": 0.1, "name": "grader", "sampled_model_name": None, "scores": {}, "token_usage": None}
    return json_answer(
        {"metadata": {**metadata, "type": "string_check"}, "model_grader_token_usage_per_model": {}, "reward": 1.0, "sub_rewards": {}}
    )


def search(call: Call, model: Model) -> Answer:
    found = {"attributes": {}, "content": [{"text": "hello", "type": "text"}], "file_id": "file-1", "filename": "hello.txt", "score": 0.9}
    query = call.asked.get("query")
    asked = query if isinstance(query, list) else [query]
    return json_answer(
        {"data": [found], "has_more": False, "next_page": None, "object": "vector_store.search_results.page", "search_query": asked}
    )


def pages(call: Call, model: Model) -> Answer:
    data = [{"text": "hello", "type": "text"}]
    return json_answer({"data": data, "has_more": False, "next_page": None, "object": "vector_store.file_content.page"})


def evaluation(call: Call, model: Model) -> Answer:
    """The response has the schema of the evaluated items in another form than the request."""
    return kept.one(kinds.EVAL, call, model, data_source_config=kinds.EVAL.value["data_source_config"])


def eval_deleted(call: Call, model: Model) -> Answer:
    return json_answer({"deleted": True, "eval_id": call.values["id"], "object": "eval.deleted"})


def run_deleted(call: Call, model: Model) -> Answer:
    return json_answer({"deleted": True, "object": "eval.run.deleted", "run_id": call.values["id"]})


def version_deleted(call: Call, model: Model) -> Answer:
    version = call.values["version"]
    return json_answer({"deleted": True, "id": f"skillver_{version}", "object": "skill.version.deleted", "version": version})


def left(call: Call, model: Model) -> Answer:
    """An item that is deleted leaves its conversation."""
    return json_answer({**kinds.CONVERSATION.value, "id": call.values["conversation_id"]})


def tuning(call: Call, model: Model) -> Answer:
    """The dated API has a status of its own."""
    return kept.one(kinds.FINE_TUNING_JOB, call, model, **({"status": "pending"} if call.form == "dated" else {}))


def run(call: Call, model: Model) -> Answer:
    value = kept.value(kinds.RUN, call)
    if call.asked.get("stream") is not True:
        return json_answer(value)
    ended = {**value, "status": "completed"}
    events = [("thread.run.created", value), ("thread.run.in_progress", value), ("thread.run.completed", ended)]
    parts = tuple(f"event: {name}\n".encode() + event(data) for name, data in events)
    return Answer(200, (*parts, b"event: done\n" + DONE), {"content-type": "text/event-stream"}, stream=True)


def webhook(call: Call, model: Model) -> Answer:
    return kept.one(kinds.WEBHOOK, call, model, signing_secret=SIGNING)


# -- realtime and live ----------------------------------------------------------------------------------------------------------------


def _session(call: Call) -> dict[str, Any]:
    given = call.asked.get("session") or {}
    if not isinstance(given, dict):
        raise errors.invalid(f"{given!r} is not of type 'object' - 'session'", param="session")
    return given


def _secret() -> dict[str, Any]:
    return {"expires_at": kinds.NOW + 60, "value": EPHEMERAL}


def client_secret(call: Call, model: Model) -> Answer:
    session = {"type": "realtime", **_session(call), "id": "sess_1", "object": "realtime.session"}
    return json_answer({**_secret(), "session": session})


def translation_secret(call: Call, model: Model) -> Answer:
    session = {"audio": {}, "expires_at": kinds.NOW + 60, "id": "sess_1", "type": "translation", **_session(call)}
    return json_answer({**_secret(), "session": session})


def realtime_session(call: Call, model: Model) -> Answer:
    return json_answer({**call.asked, "client_secret": _secret(), "id": "sess_1", "object": "realtime.session"})


def transcription_session(call: Call, model: Model) -> Answer:
    return json_answer({"client_secret": _secret(), "input_audio_format": "pcm16", "modalities": ["text"]})


def call(call: Call, model: Model) -> Answer:
    """WebRTC: an answer to the offer, and where the call is from now on."""
    place = f"{'https' if call.received.tls else 'http'}://{call.received.header('host')}/openai/v1/realtime/calls/rtc_1"
    return Answer(201, (SDP.encode(),), {"content-type": "application/sdp", "location": place})


def session(call: Call, model: Model) -> Answer:
    return json_answer({"session": {"id": "live_1"}, "transport": {"sdp": SDP, "type": "webrtc"}})
