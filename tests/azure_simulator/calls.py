"""Recognise: what was asked for, as far as it can be told. Nothing is refused here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .answers import Answer
    from .fields import Fields
    from .models import Model
    from .received import Received

__all__ = ["Call", "Operation", "recognise"]


class Operation(NamedTuple):
    """One row of the table in `operations`."""

    method: str
    path: str  # behind /openai/v1/ and /openai/deployments/{deployment}/ alike
    name: str  # in a 429's text
    verb: str  # in OperationNotSupported's text; what `Model.can` says
    fields: Fields
    answer: Callable[[Call, Model], Answer]


@dataclass(frozen=True, slots=True)
class Call:
    received: Received
    form: Literal["dated", "v1"] | None = None
    operation: Operation | None = None
    version: str | None = None  # the query's api-version, as given; given twice: None, which no form takes for a version
    deployment: str | None = None
    body: Any = None  # None too where it is no JSON: `not_json` says why
    not_json: str | None = None

    @property
    def asked(self) -> Mapping[str, Any]:
        """The body of a call that was checked."""
        assert isinstance(self.body, dict)
        return self.body


_FORMS = re.compile(r"/openai/(?:v1|deployments/(?P<deployment>[^/]+))/(?P<path>.+)")


def recognise(received: Received, operations: Mapping[tuple[str, str], Operation]) -> Call:
    match = _FORMS.fullmatch(received.bare_path)
    if match is None:
        return Call(received)
    versions = received.query.get("api-version", [""])
    try:
        body, not_json = json.loads(received.body), None
    except (ValueError, RecursionError) as error:
        body, not_json = None, str(error)
    deployment = match["deployment"] and unquote(match["deployment"])
    form: Literal["dated", "v1"] = "dated" if deployment else "v1"
    if form == "v1" and isinstance(body, dict) and isinstance(body.get("model"), str):
        deployment = body["model"]
    return Call(
        received,
        form,
        operations.get((received.method, match["path"])),
        versions[0] if len(versions) == 1 else None,
        deployment,
        body,
        not_json,
    )
