"""The headers of Azure's answers: its gateway's on every answer, the model's on each answer of a model."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calls import Call

__all__ = ["gateway", "limits", "model"]

REQUESTS, TOKENS = 1000, 1_000_000  # a deployment's rate limits


def gateway() -> dict[str, str]:
    return {
        "apim_request_id": str(uuid.uuid4()),
        "strict_transport_security": "max-age=31536000; includeSubDomains; preload",
        "x_content_type_options": "nosniff",
        "x_ms_region": "Sweden Central",
    }


def limits(requests: int, tokens: int, reset_requests: int, reset_tokens: int) -> dict[str, str]:
    """The remaining quota and the time of its reset: plain seconds, where OpenAI has durations."""
    return {
        "x_ratelimit_limit_requests": str(REQUESTS),
        "x_ratelimit_limit_tokens": str(TOKENS),
        "x_ratelimit_remaining_requests": str(requests),
        "x_ratelimit_remaining_tokens": str(tokens),
        "x_ratelimit_reset_requests": str(reset_requests),
        "x_ratelimit_reset_tokens": str(reset_tokens),
    }


def model(call: Call) -> dict[str, str]:
    """As if this request were the minute's only one; its tokens are estimated from its length, as Azure's limiter does."""
    return {
        "access_control_allow_origin": "*",
        "azureml_model_session": "v20260801-1-178237472",
        "cmp_upstream_response_duration": "93",
        "x_envoy_upstream_service_time": "95",
        "x_ms_client_request_id": call.received.header("x-ms-client-request-id") or str(uuid.uuid4()),
        "x_ms_deployment_name": str(call.deployment),
        "x_ms_rai_invoked": "true",
        "x_request_id": str(uuid.uuid4()),
        **limits(REQUESTS - 1, max(0, TOKENS - len(call.received.body) // 4), 10, 60),
    }
