"""Downloads: the content of files, containers, skills and videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .answers import Answer

if TYPE_CHECKING:
    from .calls import Call
    from .models import Model

__all__ = ["BYTES", "JSONL", "mp4", "octets", "zipped"]

BYTES = bytes(range(256)) * 64
JSONL = b'{"custom_id":"1","response":{"status_code":200,"body":{"prompt_filter_results":[]}}}\n'
"""A batch's own lines: what looks like Azure's addition to an answer is the file's, and stays."""


def octets(call: Call, model: Model) -> Answer:
    content = JSONL if call.values["id"].endswith("jsonl") else BYTES
    return Answer(200, (content,), {"content-type": "application/octet-stream", "content-disposition": 'attachment; filename="file"'})


def zipped(call: Call, model: Model) -> Answer:
    return Answer(200, (BYTES,), {"content-type": "application/zip"})


def mp4(call: Call, model: Model) -> Answer:
    return Answer(200, (BYTES[:8192], BYTES[8192:]), {"content-type": "video/mp4"}, stream=True)
