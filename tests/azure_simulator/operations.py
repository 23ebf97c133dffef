"""The table of operations, and the way of a request through it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from . import (
    audio,
    auth,
    binary,
    chat,
    completions,
    embeddings,
    errors,
    fields,
    headers,
    images,
    kept,
    kinds,
    models,
    others,
    responses,
)
from .calls import Api, Call, Operation

if TYPE_CHECKING:
    from collections.abc import Collection

    from .answers import Answer

__all__ = ["OPERATIONS", "respond"]


def _since(preview: str, ga: str = "never") -> frozenset[str]:
    return frozenset(version for version in fields.VERSIONS if version >= (preview if version.endswith("-preview") else ga))


_ALL = _since("", "")
DEPLOYED = Api(dated="deployed", versions=_ALL)
SPEECH = Api(dated="deployed", versions=_since("2024-02-15"))
EDITS = Api(dated="deployed", versions=_since("2025-04-01"))
PLAIN = Api(dated="plain", versions=_ALL)
BATCHES = Api(dated="plain", versions=_since("2024-07-01", "2024-10-21"))
UPLOADS = Api(v1=False, dated="plain", versions=_since("2024-08-01", "2024-10-21"))
TUNING = Api(dated="plain", versions=_since("2023-10-01", "2024-10-21"))
STORES = Api(dated="plain", versions=_since("2024-05-01"))
ASSISTANTS = Api(v1=False, dated="plain", versions=_since("2024-02-15"))
THREADS = Api(dated="plain", versions=_since("2024-02-15"))
STORED = Api(dated="plain", versions=_since("2025-02-01"))
RESPONSES = Api(dated="plain", versions=_since("2025-03-01"))
APRIL = Api(dated="plain", versions=_since("2025-04-01"))
OLD_LIST = Api(v1=False, dated="plain", versions=frozenset({"2023-03-15-preview"}))
V1 = Api()

_EVALS = ("testing_criteria.*.model", "data_source.model")
_HEARD = ("input_audio_transcription.model",)

OPERATIONS = (
    # A model answers.
    Operation("POST", "chat/completions", chat.answer, DEPLOYED, "json", fields.CHAT, verb="chatCompletion", name="ChatCompletions_Create"),
    Operation(
        "POST", "completions", completions.answer, DEPLOYED, "json", fields.COMPLETIONS, verb="completion", name="Completions_Create"
    ),
    Operation("POST", "embeddings", embeddings.answer, DEPLOYED, "json", fields.EMBEDDINGS, verb="embeddings", name="Embeddings_Create"),
    Operation("POST", "audio/speech", audio.speech, SPEECH, "json", fields.SPEECH, verb="audioSpeech", name="Speech_Create"),
    Operation("POST", "audio/transcriptions", audio.transcription, DEPLOYED, "form", fields.TRANSCRIPTIONS, verb="audioTranscription"),
    Operation("POST", "audio/translations", audio.translation, DEPLOYED, "form", fields.TRANSLATIONS, verb="audioTranslation"),
    Operation("POST", "images/generations", images.generate, DEPLOYED, "json", fields.IMAGES, verb="imageGeneration"),
    Operation("POST", "images/edits", images.edit, EDITS, "either", fields.EDITS, verb="imageEdit"),
    # Responses and conversations.
    Operation("POST", "responses/input_tokens", responses.input_tokens, V1, "json"),
    Operation("POST", "responses/compact", responses.compact, V1, "json", verb="responses"),
    Operation("POST", "responses", responses.create, RESPONSES, "json", fields.RESPONSES, verb="responses"),
    Operation("GET", "responses/{id}", responses.retrieve, RESPONSES),
    Operation("DELETE", "responses/{id}", responses.delete, RESPONSES),
    Operation("POST", "responses/{id}/cancel", responses.cancel, V1),
    Operation("GET", "responses/{id}/input_items", responses.input_items, RESPONSES),
    *kept.rows("conversations", kinds.CONVERSATION, "create get update delete", V1),
    Operation("POST", "conversations/{conversation_id}/items", partial(others.done, kinds.ITEM), V1, "json"),
    *kept.rows("conversations/{conversation_id}/items", kinds.ITEM, "list get", V1),
    Operation("DELETE", "conversations/{conversation_id}/items/{id}", others.left, V1),
    # Stored chats.
    *kept.rows("chat/completions", kinds.CHAT, "list get update delete", STORED),
    Operation("GET", "chat/completions/{completion_id}/messages", partial(kept.listing, kinds.CHAT_MESSAGE), STORED),
    # Files, batches, uploads.
    Operation("POST", "files", partial(others.created, kinds.FILE), PLAIN, "form"),
    *kept.rows("files", kinds.FILE, "list get delete", PLAIN),
    Operation("GET", "files/{id}/content", binary.octets, PLAIN),
    *kept.rows("batches", kinds.BATCH, "create list cancel", BATCHES),
    Operation("GET", "batches/{id}", others.batch, BATCHES),
    *kept.rows("uploads", kinds.UPLOAD, "create cancel", UPLOADS),
    Operation("POST", "uploads/{id}/complete", others.completed, UPLOADS, "json"),
    Operation("POST", "uploads/{upload_id}/parts", partial(others.created, kinds.PART, field="data"), UPLOADS, "form"),
    # Vector stores.
    *kept.rows("vector_stores", kinds.VECTOR_STORE, "create list get update delete", STORES),
    Operation("POST", "vector_stores/{id}/search", others.search, STORES, "json"),
    *kept.rows("vector_stores/{vector_store_id}/files", kinds.STORED_FILE, "create list get update delete", STORES),
    Operation("GET", "vector_stores/{vector_store_id}/files/{id}/content", others.pages, STORES),
    *kept.rows("vector_stores/{vector_store_id}/file_batches", kinds.FILE_BATCH, "create get cancel", STORES),
    Operation("GET", "vector_stores/{vector_store_id}/file_batches/{batch_id}/files", partial(kept.listing, kinds.STORED_FILE), STORES),
    # Fine-tuning starts from a base model, which is no deployment.
    Operation("POST", "fine_tuning/jobs", others.tuning, TUNING, "json", models=()),
    *kept.rows("fine_tuning/jobs", kinds.FINE_TUNING_JOB, "list get cancel", TUNING),
    *kept.rows("fine_tuning/jobs", kinds.FINE_TUNING_JOB, "pause resume", APRIL),
    Operation("GET", "fine_tuning/jobs/{fine_tuning_job_id}/events", partial(kept.listing, kinds.FINE_TUNING_EVENT), TUNING),
    Operation("GET", "fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", partial(kept.listing, kinds.CHECKPOINT), TUNING),
    Operation("POST", "fine_tuning/checkpoints/{checkpoint}/permissions", partial(others.done, kinds.PERMISSION), V1, "json"),
    *kept.rows("fine_tuning/checkpoints/{checkpoint}/permissions", kinds.PERMISSION, "list delete", V1),
    Operation("POST", "fine_tuning/alpha/graders/run", others.grade, V1, "json", models=("grader.model",)),
    Operation("POST", "fine_tuning/alpha/graders/validate", others.nothing_in_json, V1, "json", models=("grader.model",)),
    # Evals; a run is cancelled where OpenAI has `/cancel`.
    Operation("POST", "evals", others.evaluation, APRIL, "json", models=_EVALS),
    *kept.rows("evals", kinds.EVAL, "list get update", APRIL),
    Operation("DELETE", "evals/{id}", others.eval_deleted, APRIL),
    *kept.rows("evals/{eval_id}/runs", kinds.EVAL_RUN, "create list get", APRIL, _EVALS),
    Operation("DELETE", "evals/{eval_id}/runs/{id}", others.run_deleted, APRIL),
    Operation("POST", "evals/{eval_id}/runs/{id}", partial(kept.one, kinds.EVAL_RUN, status="canceled"), APRIL),
    *kept.rows("evals/{eval_id}/runs/{run_id}/output_items", kinds.OUTPUT_ITEM, "list get", APRIL),
    # Containers, skills, videos.
    *kept.rows("containers", kinds.CONTAINER, "create list get", V1),
    Operation("DELETE", "containers/{id}", others.nothing, V1),
    Operation("POST", "containers/{container_id}/files", partial(others.created, kinds.CONTAINER_FILE), V1, "either"),
    *kept.rows("containers/{container_id}/files", kinds.CONTAINER_FILE, "list get", V1),
    Operation("DELETE", "containers/{container_id}/files/{id}", others.nothing, V1),
    Operation("GET", "containers/{container_id}/files/{id}/content", binary.octets, V1),
    Operation("POST", "skills", partial(others.created, kinds.SKILL), V1, "either"),
    *kept.rows("skills", kinds.SKILL, "list get update delete", V1),
    Operation("GET", "skills/{id}/content", binary.zipped, V1),
    Operation("POST", "skills/{skill_id}/versions", partial(others.created, kinds.SKILL_VERSION), V1, "either"),
    *kept.rows("skills/{skill_id}/versions", kinds.SKILL_VERSION, "list get", V1),
    Operation("DELETE", "skills/{skill_id}/versions/{version}", others.version_deleted, V1),
    Operation("GET", "skills/{skill_id}/versions/{id}/content", binary.zipped, V1),
    Operation("POST", "videos", partial(others.created, kinds.VIDEO), V1, "either", fields.VIDEOS, verb="video"),
    *kept.rows("videos", kinds.VIDEO, "list get delete", V1),
    Operation("POST", "videos/{id}/remix", partial(others.created, kinds.VIDEO), V1, "either"),
    Operation("GET", "videos/{id}/content", binary.mp4, V1),
    # Assistants, the dated previews' alone, and threads.
    *kept.rows("assistants", kinds.ASSISTANT, "create list get update delete", ASSISTANTS, ("model",)),
    Operation("POST", "threads/runs", others.run, THREADS, "json"),
    *kept.rows("threads", kinds.THREAD, "create get update delete", THREADS),
    *kept.rows("threads/{thread_id}/messages", kinds.MESSAGE, "create list get update delete", THREADS),
    Operation("POST", "threads/{thread_id}/runs", others.run, THREADS, "json"),
    *kept.rows("threads/{thread_id}/runs", kinds.RUN, "list get update cancel", THREADS),
    Operation("POST", "threads/{thread_id}/runs/{id}/submit_tool_outputs", others.run, THREADS, "json"),
    *kept.rows("threads/{thread_id}/runs/{run_id}/steps", kinds.STEP, "list get", THREADS),
    # Realtime and live sessions, as far as they are HTTP.
    Operation("POST", "realtime/client_secrets", others.client_secret, V1, "json", models=("session.model",)),
    Operation("POST", "realtime/translations/client_secrets", others.translation_secret, V1, "json", models=("session.model",)),
    Operation("POST", "realtime/sessions", others.realtime_session, V1, "json"),
    Operation("POST", "realtimeapi/sessions", others.realtime_session, APRIL._replace(v1=False), "json"),
    Operation("POST", "realtime/transcription_sessions", others.transcription_session, V1, "json", models=_HEARD),
    Operation("POST", "realtimeapi/transcription_sessions", others.transcription_session, APRIL._replace(v1=False), "json", models=_HEARD),
    Operation("POST", "realtime/calls", others.call, V1, "either", models=("session.model",)),
    Operation("POST", "realtime/calls/{id}/accept", others.nothing, V1, "json"),
    *(Operation("POST", f"realtime/calls/{{id}}/{verb}", others.nothing, V1) for verb in ("hangup", "refer", "reject")),
    Operation("POST", "live/sessions", others.session, V1, "json", models=("session.model",)),
    Operation("POST", "live/sessions/{id}/accept", others.nothing, V1, "json", models=("session.model",)),
    Operation("POST", "live/sessions/{id}/fork", others.session, V1, "json"),
    *(Operation("POST", f"live/sessions/{{id}}/{verb}", others.nothing, V1) for verb in ("hangup", "refer", "reject")),
    Operation("GET", "live/sessions/{id}/content", binary.octets, V1),
    # Models, webhooks.
    Operation("GET", "models", others.catalogue, PLAIN),
    Operation("GET", "models/{id}", others.model_of, PLAIN),
    *kept.rows("models", kinds.MODEL, "delete", V1),
    Operation("GET", "deployments", others.deployments, OLD_LIST),
    Operation("POST", "dashboard/webhook_endpoints", others.webhook, V1, "json"),
    *kept.rows("dashboard/webhook_endpoints", kinds.WEBHOOK, "list get update delete", V1),
)
"""The first row that fits counts."""


def respond(call: Call, key: str, entra_tokens: Collection[str]) -> Answer:
    """Azure's answer: the gateway's checks first, then the model's, then the model's answer."""
    try:
        auth.check(call.received, call.form, key, entra_tokens)
        operation, version = _operation(call)
        model = _model(call, operation)
        try:
            _check_body(call, operation, version)
            answer = operation.answer(call, model)
        except errors.AzureError as error:
            answer = error.answer
        answer = answer.with_headers(**headers.model(call))
    except errors.AzureError as error:
        answer = error.answer
    return answer.with_headers(**headers.gateway())


def _operation(call: Call) -> tuple[Operation, str]:
    """The row and the version the body is to be held against."""
    if call.operation is None:
        raise errors.not_found()
    if call.form == "v1":
        if call.version not in ("", "v1", "preview"):
            raise errors.api_version_not_supported()
        if call.version and call.operation.path.startswith("realtime/"):
            raise errors.no_access()
        return call.operation, "v1"
    if call.version not in call.operation.api.versions:
        raise errors.not_found()
    return call.operation, call.version


def _model(call: Call, operation: Operation) -> models.Model:
    if operation.verb and call.form == "v1":
        _check_read(call)
        if call.deployment is None:
            raise errors.invalid("'model' is a required property")
    for name in call.named or filter(None, [call.deployment]):
        if name not in call.deployments:
            raise errors.deployment_not_found()
    if call.deployment is None:
        return models.NONE
    model = models.find(call.deployments[call.deployment])
    if operation.verb and operation.verb not in model.can:
        raise errors.operation_not_supported(operation.verb, model.name)
    return model


def _check_read(call: Call) -> None:
    if call.unread is not None:
        raise errors.invalid(f"Your request contained invalid JSON: {call.unread}")  # wording unverified


def _check_body(call: Call, operation: Operation, version: str) -> None:
    if operation.body == "none" or (operation.fields is None and (not call.received.body or call.opaque)):
        return
    _check_read(call)
    if call.multipart is not None:
        if operation.fields is not None:
            fields.check_names(operation.fields, call.multipart.names, version)
        return
    if not isinstance(call.body, dict):
        raise errors.invalid(f"{call.body!r} is not of type 'object'")
    if operation.fields is not None:
        fields.check(operation.fields, call.body, version)
