"""Recognise the operation of a request, as far as possible. Nothing is refused here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote

from . import forms
from .made_items import MadeItems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .answers import Answer
    from .fields import Fields
    from .models import Model
    from .received import Received
    from .scripts import Reply, Script

__all__ = ["Api", "Call", "Operation", "recognise", "strings"]


class Api(NamedTuple):
    """Where an operation is served."""

    v1: bool = True
    dated: Literal["", "deployed", "plain"] = ""  # below /openai/deployments/{deployment}/, or below /openai/
    versions: frozenset[str] = frozenset()  # of the dated API


class Operation(NamedTuple):
    """One row of the table in `operations`."""

    method: str
    path: str  # behind /openai/v1/, /openai/deployments/{deployment}/ and /openai/ alike; `{...}` is one segment
    answer: Callable[[Call, Model], Answer]
    api: Api
    body: Literal["none", "json", "form", "either"] = "none"  # none: a body is not read
    fields: Fields | None = None  # None: any body is accepted
    models: tuple[str, ...] = ("model",)  # where a body may name deployments; `*` is any item of a list
    verb: str = ""  # in the text of OperationNotSupported, and in `Model.can`; "": it needs no model
    name: str = ""  # in a 429's text


@dataclass(frozen=True, slots=True)
class Call:
    received: Received
    form: Literal["dated", "v1"] | None = None
    operation: Operation | None = None
    values: Mapping[str, str] = field(default_factory=dict)  # the values of `{...}` in the path
    version: str | None = None  # the query's api-version, as given; given twice: None, which no form takes for a version
    deployment: str | None = None
    named: tuple[str, ...] = ()  # every deployment that the body names
    body: Any = None  # JSON; None too where it is none: `unread` says why. Of a form: its fields
    multipart: forms.Form | None = None
    unread: str | None = None
    deployments: Mapping[str, str] = field(default_factory=dict)  # what the resource has
    script: Script | None = None  # a scripted model
    made: MadeItems = field(default_factory=MadeItems)  # items of the resource's responses

    @property
    def asked(self) -> Mapping[str, Any]:
        """The body of a call that was checked; empty where there is none."""
        return self.body if isinstance(self.body, dict) else {}

    @property
    def scripted(self) -> Reply | None:
        """The reply of the scripted model, if there is one."""
        return self.script(self.asked) if self.script else None

    @property
    def opaque(self) -> bool:
        """Neither JSON nor a form, where both are allowed: the operation reads it."""
        content_type = self.received.header("content-type") or ""
        assert self.operation
        return self.operation.body == "either" and not content_type.startswith(("multipart/", "application/json"))

    @property
    def uploaded(self) -> forms.Form:
        """The form of a call that was checked."""
        assert self.multipart is not None
        return self.multipart


_FORMS = re.compile(r"/openai/(?:(?P<v1>v1)/|deployments/(?P<deployment>[^/]+)/)?(?P<path>.+)")


def recognise(
    received: Received,
    operations: Sequence[Operation],
    deployments: Mapping[str, str],
    script: Script | None = None,
    made: MadeItems | None = None,
) -> Call:
    match = _FORMS.fullmatch(received.bare_path)
    if match is None:
        return Call(received)
    form: Literal["dated", "v1"] = "v1" if match["v1"] else "dated"
    deployment = match["deployment"] and unquote(match["deployment"])
    place = "deployed" if deployment else "plain"
    versions = received.query.get("api-version", [""])
    version = versions[0] if len(versions) == 1 else None
    for operation in operations:
        api = operation.api
        if operation.method == received.method and (api.v1 if form == "v1" else api.dated == place):
            values = _values(operation.path, match["path"])
            if values is not None:
                break
    else:
        return Call(received, form, version=version, deployment=deployment)
    body, multipart, unread = _read(received, operation)
    named = tuple(text for place in operation.models for text in strings(body, place.split("."))) if not deployment else ()
    first = deployment or next(iter(named), None)
    made = made or MadeItems()
    return Call(received, form, operation, values, version, first, named, body, multipart, unread, deployments, script, made)


def _values(template: str, path: str) -> dict[str, str] | None:
    names, parts = template.split("/"), path.split("/")
    if len(names) != len(parts) or not all(part and (name[0] == "{" or name == part) for name, part in zip(names, parts, strict=True)):
        return None
    return {name[1:-1]: unquote(part) for name, part in zip(names, parts, strict=True) if name[0] == "{"}


def _read(received: Received, operation: Operation) -> tuple[Any, forms.Form | None, str | None]:
    """JSON, form, and why there is neither."""
    content_type = received.header("content-type") or ""
    is_form = operation.body == "form" or (operation.body == "either" and content_type.startswith("multipart/"))
    try:
        if is_form:
            form = forms.parse(content_type, received.body)
            return {name: json.loads(text) if text.startswith("{") else text for name, text in form.fields.items()}, form, None
        return json.loads(received.body), None, None
    except (ValueError, RecursionError) as error:
        return None, None, str(error)


def strings(value: Any, place: Sequence[str]) -> list[str]:
    """The strings at one place of a JSON value."""
    if not place:
        return [value] if isinstance(value, str) else []
    if place[0] == "*":
        return [text for item in value for text in strings(item, place[1:])] if isinstance(value, list) else []
    return strings(value.get(place[0]), place[1:]) if isinstance(value, dict) else []
