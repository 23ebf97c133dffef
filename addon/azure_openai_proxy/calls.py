"""recognise: request → Call. Which OpenAI operation this is, which model the client named, whether it asked to stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import endpoints
from .errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .endpoints import Endpoint

__all__ = ["Call", "UnknownOperation", "recognise"]


class UnknownOperation(NotFound):
    """Inside the API, but no row of the table."""

    code = "unknown_url"


@dataclass(frozen=True, slots=True)
class Call:
    """What a client asked for, before anyone decided where it goes."""

    endpoint: Endpoint
    model: str | None  # as the client wrote it; None: the operation has none
    stream: bool


def recognise(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Call | None:
    """Read a request. `path` is without its query.

    Returns:
        None when the path is outside the API.

    Raises:
        UnknownOperation: under /v1, but no operation this proxy knows.
        BadRequest: the operation needs a model and the body names none that can be read.
    """
    parts = endpoints.segments(path)
    found = endpoints.find(method, parts)
    if found is None:
        if not path.lstrip("/").startswith("v1/"):
            return None
        operation = f"{method} /v1/{'/'.join(parts)}"
        raise UnknownOperation(f"{operation} is not an operation this proxy translates to Azure OpenAI.")
    endpoint, values = found
    match endpoint.model_in:
        case "path":
            return Call(endpoint, values["model"], stream=False)
        case "body":
            members = _json_object(headers, body, endpoint.operation)
            return Call(endpoint, _model(members), members.get("stream") is True)
        case _:
            return Call(endpoint, None, stream=False)


def _json_object(headers: Mapping[str, str], body: bytes, operation: str) -> dict[str, Any]:
    if headers.get("content-encoding", "identity") != "identity":
        raise BadRequest(f"The body is compressed ({headers['content-encoding']}): send it without content-encoding.")
    if not body:
        raise BadRequest(f"The body is empty: {operation} needs a JSON object with a `model`.")
    try:
        members = json.loads(body.decode())
    except json.JSONDecodeError as e:
        raise BadRequest(f"The body is not valid JSON: {e}") from e
    except (ValueError, RecursionError) as e:  # not UTF-8, a number or a nesting beyond all measure
        raise BadRequest("The body is not valid JSON.") from e
    if not isinstance(members, dict):
        raise BadRequest(f"The body is JSON, but not an object: {operation} needs an object with a `model`.")
    return members


def _model(members: dict[str, Any]) -> str:
    model = members.get("model")
    if model is None:
        raise BadRequest("you must provide a model parameter", param="model")  # OpenAI's own sentence: clients look for it
    if not isinstance(model, str):
        raise BadRequest(f"`model` must be a string, not {type(model).__name__}.", param="model")
    if model.strip(".") == "":  # "", "." and "..": in a path they would be other places
        raise BadRequest(f"`model` is {model!r}: name a model or a deployment.", param="model")
    return model
