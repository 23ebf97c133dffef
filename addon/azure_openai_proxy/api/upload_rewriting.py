"""Rewriting of multipart forms for Azure: the model, and the models in the lines of a batch file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import json_edit, multipart
from azure_openai_proxy.formats.json_scan import LARGE
from azure_openai_proxy.formats.multipart import Blank, Edit, Field, Lines, Part, Rewriter, boundary

from . import large_bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .operation import Call

__all__ = ["batch_line", "rewriter"]

JSON_FIELD = 256 * 1024
"""Maximum size in bytes of a field that is parsed as JSON."""


def rewriter(
    call: Call, headers: Mapping[str, str], deployment: Callable[[str], str], *, in_path: bool, batch_lines: int, streamed: bool = False
) -> Rewriter | None:
    """Return a rewriter; None if nothing changes, or if the body is not a form.

    `in_path`: the deployment is in the path. `batch_lines`: the maximum length of a line in bytes; 0 for no batch files.
    `streamed`: only the beginning of the form is known, and another model may follow.
    """
    separator = boundary(headers.get("content-type", ""))
    if not separator:
        return None
    if call.endpoint.model_in == "form" and not in_path and (streamed or call.model is None or deployment(call.model) != call.model):
        return Rewriter(separator, _Model(deployment, call.endpoint.models), strict=True)
    if batch_lines and (call.method, call.path) == ("POST", "/files"):
        return Rewriter(separator, _BatchFile(deployment, batch_lines))
    return None


class _Model:
    """Renames the form's first `model`, or the model inside the JSON of another field, such as `session.model`.

    Of several fields parsers take the first or the last one. Another model than the first is blanked, in the same length.
    """

    def __init__(self, deployment: Callable[[str], str], places: Iterable[str]) -> None:
        self._deployment = deployment
        self._places: dict[str, list[str]] = {}
        self._first: dict[str, str] = {}  # the text of each field as the client wrote it
        for name, _, inside in (place.partition(".") for place in places):
            self._places.setdefault(name, []).append(inside)

    def __call__(self, part: Part) -> Edit | None:
        if part.odd:
            return Blank()
        inside = self._places.get(part.name)
        if inside is None:
            return None
        if part.name in self._first:
            return Field(lambda text: text if text == self._first[part.name] else multipart.BLANK.decode() * len(text.encode()), JSON_FIELD)
        self._first[part.name] = ""
        if inside == [""]:
            return Field(lambda text: self._renamed(part.name, text, self._deployment(text)))
        return Field(lambda text: self._renamed(part.name, text, _in_json(text, inside, self._deployment)), limit=JSON_FIELD)

    def _renamed(self, name: str, text: str, new: str) -> str:
        self._first[name] = text
        return new


def _in_json(text: str, places: Iterable[str], deployment: Callable[[str], str]) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json_edit.rename(text.encode(), places, deployment).decode()


class _BatchFile:
    """Renames the models in the file, unless a preceding `purpose` is not `batch`."""

    def __init__(self, deployment: Callable[[str], str], limit: int) -> None:
        self._deployment = deployment
        self._limit = limit
        self._purpose = "batch"

    def __call__(self, part: Part) -> Edit | None:
        if part.name == "purpose":
            return Field(self._keep_purpose)
        if part.name == "file" and self._purpose == "batch":
            return Lines(lambda line: batch_line(line, self._deployment), self._limit)
        return None

    def _keep_purpose(self, purpose: str) -> str:
        self._purpose = purpose
        return purpose


def batch_line(line: bytes, deployment: Callable[[str], str]) -> bytes:
    """Rename the model in one request of a batch. Any other line is unchanged."""
    if b'"custom_id"' not in line or b'"model"' not in line:
        return line
    if len(line) > LARGE:
        return large_bodies.renamed_in_line(line, "body.model", deployment)
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return json_edit.rename(line, ("body.model",), deployment) if isinstance(request, dict) else line
