"""Replay of a flow's request: by mitmproxy's replay, from a file, or to another deployment.

The flow's request is already translated, and its keys are masked. It is served like the request of a client of Azure's own API: the
configured key is inserted, the model is not mapped again, and the response is translated as the first one was.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from azure_openai_proxy.api import redaction
from azure_openai_proxy.api.model_mapping import Entry, Mapper

from . import flow_metadata

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.config.settings import Settings

__all__ = ["RESEND", "is_ours", "prepare"]

RESEND = f"{flow_metadata.PREFIX}resend"
"""Metadata name: the deployment that a copied flow is sent to."""


def is_ours(flow: http.HTTPFlow) -> bool:
    """Whether this is the replay of a request to Azure. A replayed request to OpenAI itself is sent unchanged."""
    return flow.is_replay == "request" and f"{flow_metadata.PREFIX}deployment" in flow.metadata


def prepare(flow: http.HTTPFlow, settings: Settings) -> Settings:
    """Turn `flow.request` into a request of a client of Azure's API, and return the settings for it."""
    redaction.without_masks(flow.request)
    for prefix in {backend.base.prefix for backend in settings.backends}:
        flow.request.path = flow.request.path.removeprefix(prefix)
    deployment = flow.metadata.get(RESEND)
    mapper = Mapper((Entry("*", deployment),) if deployment else (), settings.mapper.entries)
    return dataclasses.replace(settings, mode="azure", mapper=mapper)
