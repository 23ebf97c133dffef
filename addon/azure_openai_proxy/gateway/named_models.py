"""The models that a request names beside its own one, and those that a message of a WebSocket names: may the client use them?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import json_edit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mitmproxy import http

    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.operation import Call

    from .admission import Admission

__all__ = ["IN_MESSAGES", "OF_TOOLS", "check_request", "named"]

OF_TOOLS = "tools.*.model"
"""Where a Responses request names the model of image generation."""
IN_MESSAGES = (OF_TOOLS, f"response.{OF_TOOLS}")
"""The same in a message of a WebSocket."""
_IMAGE_DEPLOYMENT = "x-ms-oai-image-generation-deployment"
"""The header that names the deployment of the image generation tool of the Responses API."""


def check_request(
    admission: Admission, call: Call, in_query: Iterable[str], headers: http.Headers, content: bytes, large: LargeBody | None
) -> None:
    """Check all models that a request names. `in_query`: those of its query; `large`: the values found in a large body.

    Raises:
        Refused: the client may not use one of them.
    """
    for model in (call.model, *in_query):
        admission.check_model(model)
    if not admission.client.models:
        return
    places = () if call.endpoint.models else ("model",)  # the base model of a fine-tuning job
    if call.path.startswith("/responses"):
        for name in ",".join(headers.get_all(_IMAGE_DEPLOYMENT)).split(","):
            admission.check_model(name.strip() or None)
        places = (OF_TOOLS,)
    for name in named(content, places, large) if places else ():
        admission.check_model(name)


def named(content: bytes, places: Sequence[str], large: LargeBody | None) -> list[str]:
    """The strings at `places` of a JSON document, or of a large one that was scanned. None of a body that is no JSON."""
    if large:
        return [span.text for span in large.strings(*places)]
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return []
    return [span.text for span in json_edit.json_strings(content, places)]
