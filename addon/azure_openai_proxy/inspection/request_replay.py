"""A flow sent again: by mitmproxy's replay, from a file, or to another deployment.

Its request is Azure's already, and the keys in it are masks. It is served as the request of a client that speaks Azure's own API: the
configured key is put in, nothing is mapped twice, and the answer is put into OpenAI's shape as the first one was.
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
"""In the metadata of a copy: the deployment it is for."""


def is_ours(flow: http.HTTPFlow) -> bool:
    """Only what was sent to Azure: what a file holds for OpenAI itself goes there as it is."""
    return flow.is_replay == "request" and f"{flow_metadata.PREFIX}deployment" in flow.metadata


def prepare(flow: http.HTTPFlow, settings: Settings) -> Settings:
    """Make `flow.request` one of a client that speaks Azure's API; the settings under which it is to be served."""
    redaction.without_masks(flow.request)
    for prefix in {backend.base.prefix for backend in settings.backends}:
        flow.request.path = flow.request.path.removeprefix(prefix)
    deployment = flow.metadata.get(RESEND)
    return dataclasses.replace(settings, mode="azure", mapper=Mapper((Entry("*", deployment),) if deployment else ()))
