"""Images: generated and edited, whole or in parts."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from . import errors, filters, kinds, usage
from .answers import Answer, json_answer, typed_answer

if TYPE_CHECKING:
    from .calls import Call
    from .models import Model

__all__ = ["edit", "generate"]

_PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256))).decode()
_LOOKS = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}


def generate(call: Call, model: Model) -> Answer:
    return _made(call, "image_generation", 0)


def edit(call: Call, model: Model) -> Answer:
    if call.multipart is not None and call.multipart.upload("image") is None:
        raise errors.invalid("'image' is a required property")
    return _made(call, "image_edit", 1)


def _made(call: Call, kind: str, images: int) -> Answer:
    used = usage.image(call.asked, images)
    image: dict[str, Any] = {"b64_json": _PNG}
    if call.asked.get("stream") in (True, "true"):
        head = {**image, **_LOOKS, "created_at": kinds.NOW}
        partial = {"type": f"{kind}.partial_image", **head, "partial_image_index": 0}
        return typed_answer([partial, {"type": f"{kind}.completed", **head, "usage": used}])
    verdicts = {"content_filter_results": filters.COMPLETION, "prompt_filter_results": filters.PROMPT}
    data = [{**image, **verdicts} for _ in range(int(call.asked.get("n") or 1))]
    return json_answer({**_LOOKS, "created": kinds.NOW, "data": data, "usage": used})
