"""Writing records as lines of JSON.

The members that the calls of a kind have in common, such as the model and the status, are written once, into a template, and so are those
that no call of several has. The other members are encoded one column after the other: the values of most columns need no encoder.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
from itertools import islice, repeat
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, NamedTuple

from .record import COMMON, batch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .record import CallKind, CallRecord

__all__ = ["Field", "Lines", "time_texts"]

MOST = 2048
"""Templates that are remembered."""
_NULL, _PLAIN, _TEXT = "null", "%s", '"%s"'
"""How a column is written into a template: no value, values that `str` turns into JSON, and texts that need quotes and no escapes."""


class Field(NamedTuple):
    """A member of each line."""

    name: str
    description: str
    attribute: str  # of `CallRecord`, with dots
    convert: Callable[[Sequence[Any]], Sequence[Any]] | None = None  # returns the values that are written


class Lines:
    """Writes lines. A line is ASCII, and its control characters are escaped."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._own = [field for field in fields if field.attribute not in COMMON]
        self.templates: dict[tuple[CallKind, tuple[str, ...]], str] = {}

    def __call__(self, calls: Sequence[CallRecord]) -> str:
        """Return the lines of records, each with its end."""
        if not calls:
            return ""
        batch = batch_of(calls)
        written = [_column(batch.column(field.attribute, field.convert)) for field in self._own]
        forms = tuple([form for form, _ in written])
        columns = [values for form, values in written if form != _NULL]
        rows = zip(*columns, strict=True) if columns else repeat(())
        if batch.one_kind:
            template = self._template(batch.samples[0], forms)
            lines = [template % row for row in islice(rows, len(batch))]
        else:
            lines = [self._template(call, forms) % row for call, row in zip(batch.samples, rows, strict=False)]
        text = "".join(lines)
        return text.replace("\x7f", "\\u007f") if "\x7f" in text else text

    def _template(self, call: CallRecord, forms: tuple[str, ...]) -> str:
        template = self.templates.get((call.kind, forms)) if call.kind else None
        if template is None:
            own = dict(zip(self._own, forms, strict=True))
            members = [f'"{field.name}":{own[field] if field in own else _common(field, call)}' for field in self._fields]
            template = f"{{{','.join(members)}}}\n"
            if call.kind:
                if len(self.templates) >= MOST:
                    self.templates.clear()
                self.templates[call.kind, forms] = template
        return template


def _common(field: Field, call: CallRecord) -> str:
    value = getattr(call, field.attribute)
    return _json(field.convert((value,))[0] if field.convert else value).replace("%", "%%")


def _column(values: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """Return how a column is written, and the values to insert."""
    first = values[0]
    try:
        if type(first) is str:
            text = first if values.count(first) == len(values) else "".join(values)
            if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
                return _TEXT, values
            return _PLAIN, list(map(encode_basestring_ascii, values))
        if type(first) in (int, float) and math.isfinite(sum(values)):
            return _PLAIN, values
    except (TypeError, OverflowError):  # some are null, or of another type
        pass
    if first is None and values.count(None) == len(values):
        return _NULL, ()
    return _PLAIN, list(map(_json, values))


# The values


def time_texts(times: Sequence[float]) -> list[str]:
    """Unix times in the form of RFC 3339, with milliseconds."""
    return [f"{_second(moment // 1_000_000)}.{moment // 1000 % 1000:03}Z" for moment in [round(seconds * 1e6) for seconds in times]]


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        value = None  # JSON has no such number
    return _encode(value)
