"""The table of operations, and the way of a request through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import auth, chat, completions, embeddings, errors, fields, headers, models
from .calls import Call, Operation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .answers import Answer

__all__ = ["OPERATIONS", "respond"]

_TABLE = (
    Operation("POST", "chat/completions", "ChatCompletions_Create", "chatCompletion", fields.CHAT, chat.answer),
    Operation("POST", "completions", "Completions_Create", "completion", fields.COMPLETIONS, completions.answer),
    Operation("POST", "embeddings", "Embeddings_Create", "embeddings", fields.EMBEDDINGS, embeddings.answer),
)

OPERATIONS: Mapping[tuple[str, str], Operation] = {(row.method, row.path): row for row in _TABLE}


def respond(call: Call, key: str, entra_tokens: Collection[str], deployments: Mapping[str, str]) -> Answer:
    """Azure's answer: the gateway's checks first, then the model's, then the model's answer."""
    try:
        auth.check(call.received, call.form, key, entra_tokens)
        operation, version = _operation(call)
        model = _model(call, operation, deployments)
        try:
            if call.not_json is not None:
                raise errors.invalid(f"Your request contained invalid JSON: {call.not_json}")  # wording unverified
            if not isinstance(call.body, dict):
                raise errors.invalid(f"{call.body!r} is not of type 'object'")
            fields.check(operation.fields, call.body, version)
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
        return call.operation, "v1"
    if call.version not in fields.VERSIONS:
        raise errors.not_found()
    return call.operation, call.version


def _model(call: Call, operation: Operation, deployments: Mapping[str, str]) -> models.Model:
    if call.form == "v1" and call.not_json is not None:
        raise errors.invalid(f"Your request contained invalid JSON: {call.not_json}")
    if call.form == "v1" and call.deployment is None:
        raise errors.invalid("'model' is a required property")
    if call.deployment is None or call.deployment not in deployments:
        raise errors.deployment_not_found()
    model = models.find(deployments[call.deployment])
    if operation.verb not in model.can:
        raise errors.operation_not_supported(operation.verb, model.name)
    return model
