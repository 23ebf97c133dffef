"""Multipart forms of RFC 7578; an incomplete form is refused."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Form", "Upload", "parse"]


class Upload(NamedTuple):
    """One file of a form."""

    field: str
    filename: str
    content: bytes


class Form(NamedTuple):
    fields: dict[str, str]  # `x[]` and `x[y]` are called x; of several the last
    uploads: tuple[Upload, ...]

    def upload(self, field: str) -> Upload | None:
        return next((upload for upload in self.uploads if upload.field == field), None)

    @property
    def names(self) -> set[str]:
        return {*self.fields, *(upload.field for upload in self.uploads)}


_BOUNDARY = re.compile(r'multipart/form-data;.*?boundary="?([^";,]+)"?', re.IGNORECASE)
_HEAD = re.compile(
    rb'content-disposition:[ \t]*form-data;[^\r\n]*?\bname="([^"\r\n]*)"(?:[^\r\n]*?\bfilename="([^"\r\n]*)")?', re.IGNORECASE
)


def parse(content_type: str, body: bytes) -> Form:
    """The form in `body`.

    Raises:
        ValueError: it is none, or has no end.
    """
    boundary = _BOUNDARY.match(content_type)
    if boundary is None:
        raise ValueError(f"{content_type or 'no content type'!r} is no multipart form")
    delimiter = b"\r\n--" + boundary[1].encode()
    before, *parts = (b"\r\n" + body).split(delimiter)
    if before or not parts or parts[-1].rstrip() != b"--":
        raise ValueError("the form has no end")
    fields: dict[str, str] = {}
    uploads: list[Upload] = []
    for part in parts[:-1]:
        head, end, content = part.partition(b"\r\n\r\n")
        named = _HEAD.search(head)
        if not end or named is None:
            raise ValueError("a part of the form has no name")
        name = named[1].decode().partition("[")[0]
        if named[2] is None:
            fields[name] = content.decode()
        else:
            uploads.append(Upload(name, named[2].decode(), content))
    return Form(fields, tuple(uploads))
