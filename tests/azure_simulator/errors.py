"""Azure's refusals, word for word where a capture is public; a comment says where it is not.

Gateway errors (auth, path, deployment, rate) have `code` and `message` only; the model's own have OpenAI's four members.
"""

from __future__ import annotations

from typing import Any

from .answers import Answer, json_answer

__all__ = [
    "STREAM_OPTIONS",
    "AzureError",
    "api_version_not_supported",
    "content_filter",
    "deployment_not_found",
    "invalid",
    "item_not_found",
    "no_access",
    "not_decrypted",
    "not_found",
    "operation_not_supported",
    "previous_not_found",
    "too_many_requests",
    "unknown_parameter",
    "unrecognized",
    "unsupported_parameter",
    "unsupported_value",
]


class AzureError(Exception):
    """A refusal; the client receives `answer`."""

    def __init__(self, status: int, error: dict[str, Any], reason: str | None = None, **headers: str) -> None:
        super().__init__(error["message"])
        self.error = error
        self.answer: Answer = json_answer({"error": error}, status, reason).with_headers(**headers)


def no_access() -> AzureError:
    message = (
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active "
        "subscription and use a correct regional API endpoint for your resource."
    )
    return AzureError(401, {"code": "401", "message": message}, "PermissionDenied")


def not_found() -> AzureError:
    """A path that Azure has not, and an api-version it has not."""
    error = AzureError(404, {"code": "404", "message": "Resource not found"})
    error.answer = Answer(404, (b'{"error":{"code":"404","message": "Resource not found"}}',), error.answer.headers)  # Azure's own space
    return error


def deployment_not_found() -> AzureError:
    message = (
        "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, "
        "please wait a moment and try again."
    )
    return AzureError(404, {"code": "DeploymentNotFound", "message": message})


def api_version_not_supported() -> AzureError:
    """A dated version on a v1 path. The code is unverified."""
    return AzureError(400, {"code": "BadRequest", "message": "API version not supported"})


def operation_not_supported(verb: str, model: str) -> AzureError:
    message = (
        f"The {verb} operation does not work with the specified model, {model}. Please choose different model and try again. You can "
        "learn more about which models can be used with each operation here: https://go.microsoft.com/fwlink/?linkid=2197993."
    )
    return AzureError(400, {"code": "OperationNotSupported", "message": message})


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> AzureError:
    """The model's own 400, in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return AzureError(400, error, ms_azureml_model_error_reason="model_error", ms_azureml_model_error_statuscode="400")


def unrecognized(names: list[str]) -> AzureError:
    return invalid(f"Unrecognized request argument{'s' if len(names) > 1 else ''} supplied: {', '.join(names)}")


def unknown_parameter(place: str) -> AzureError:
    """In the Responses API (openai/codex#30161, microsoft/agent-framework#2203)."""
    return invalid(f"Unknown parameter: '{place}'.", param=place, code="unknown_parameter")


def unsupported_parameter(name: str, instead: str) -> AzureError:
    message = f"Unsupported parameter: '{name}' is not supported with this model. Use '{instead}' instead."
    return invalid(message, param=name, code="unsupported_parameter")


def unsupported_value(name: str, value: Any, default: Any) -> AzureError:
    message = f"Unsupported value: '{name}' does not support {value} with this model. Only the default ({default}) value is supported."
    return invalid(message, param=name, code="unsupported_value")


def item_not_found(id_: str) -> AzureError:
    """Of an item that another resource made, or that was not stored (litellm#18094)."""
    return invalid(f"Item with id '{id_}' not found.", param="input")


def previous_not_found(id_: str) -> AzureError:
    message = f"Previous response with id '{id_}' not found."
    return invalid(message, param="previous_response_id", code="previous_response_not_found")


def not_decrypted(encrypted: str) -> AzureError:
    """Of reasoning that another resource encrypted (litellm#27703)."""
    shown = f"{encrypted[:4]}...{encrypted[-4:]}"
    message = f"The encrypted content {shown} could not be verified. Reason: Encrypted content could not be decrypted or parsed."
    return invalid(message, code="invalid_encrypted_content")


STREAM_OPTIONS = "The 'stream_options' parameter is only allowed when 'stream' is enabled."


def content_filter() -> AzureError:
    message = (
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt "
        "and retry. To learn more about our content filtering policies please read our documentation: "
        "https://go.microsoft.com/fwlink/?linkid=2198766"
    )
    safe = {"filtered": False, "severity": "safe"}
    result = {
        "hate": {"filtered": True, "severity": "high"},
        "jailbreak": {"filtered": False, "detected": False},
        "self_harm": safe,
        "sexual": safe,
        "violence": safe,
    }
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": result}
    return AzureError(
        400, {"message": message, "type": None, "param": "prompt", "code": "content_filter", "status": 400, "innererror": inner}
    )


def too_many_requests(operation: str, version: str | None, model: str, seconds: int) -> AzureError:
    """Two wordings: with a dated version the operation and version are named, on v1 the deployment and region."""
    if version is not None:
        message = (
            f"Requests to the {operation} Operation under Azure OpenAI API version {version} have exceeded token rate limit of your "
            f"current OpenAI S0 pricing tier. Please retry after {seconds} seconds. Please go here: https://aka.ms/oai/quotaincrease "
            "if you would like to further increase the default rate limit."
        )
    else:
        message = (
            f"Your requests to {model} for {model} in Sweden Central have exceeded the token rate limit for your current AIServices S0 "
            f"pricing tier. Please retry after {seconds} seconds. To increase your default rate limit, visit: "
            "https://aka.ms/oai/quotaincrease."
        )
    return AzureError(429, {"code": "429", "message": message})
