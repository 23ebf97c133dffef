"""Azure's filter results cut out of a chunk of a chat by bytes: with Azure's default filter every chunk has them.

It is done when one regular expression takes the whole chunk: JSON, of the shape that Azure writes, with one choice that begins
with `content_filter_results` and goes on with its `delta`. Whatever is written otherwise is left to the parser. An expression
cannot follow nesting; what a delta holds (tool calls) is three deep, and spelled out that far.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Chunk", "Pattern", "without_filter"]

_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_PLAIN = rb"(?:%b|null|true|false|-?(?:0|[1-9][0-9]{0,15}+)(?![0-9.eE]))" % _STRING


def _object(value: bytes) -> bytes:
    member = rb"%b:%b" % (_STRING, value)
    return rb"\{(?:%b(?:,%b)*+)?+\}" % (member, member)


_FLAT = _object(_PLAIN)
_DEEP = _object(rb"(?:%b|%b)" % (_PLAIN, _FLAT))
_DELTA = _object(rb"(?:%b|%b|\[(?:%b(?:,%b)*+)?+\])" % (_PLAIN, _DEEP, _DEEP, _DEEP))
_MEMBERS = rb'(?:,"[a-z_]++":(?:%b|%b))*+' % (_PLAIN, _DEEP)
_CHUNK = re.compile(rb'\{"choices":\[\{("content_filter_results":%b,)?"delta":(%b)%b\}\]%b\}' % (_DEEP, _DELTA, _MEMBERS, _MEMBERS))
_TEXT = re.compile(rb'\{"content":%b\}' % _STRING)


class Pattern(NamedTuple):
    """What the events of one stream have around their text, before and after the cut. Nearly all differ in nothing else."""

    before: bytes
    after: bytes
    new_before: bytes

    def cut(self, event: bytes) -> bytes | None:
        """`event` as `without_filter` has it; the same object when nothing is cut. None: it takes a longer look.

        What is before and after has been seen to be right, and between them is a delta with text in it and nothing else.
        """
        if not (event.startswith(self.before) and event.endswith(self.after)):
            return None
        start, end = len(self.before), len(event) - len(self.after)
        if not _TEXT.fullmatch(event, start, end) or not _is_text(event):
            return None
        return event if self.before == self.new_before else self.new_before + event[start:end] + self.after


class Chunk(NamedTuple):
    """A chunk without its one choice's filter results, and not another byte changed."""

    content: bytes
    pattern: Pattern | None  # of its event, written `data: ...`, a blank line behind it


def without_filter(chunk: bytes) -> Chunk | None:
    """The same object as its content when there are no filter results; None when it takes a parser to tell."""
    found = _CHUNK.fullmatch(chunk)
    if not found or not _is_text(chunk):
        return None
    start, end = found.span(1)
    content = chunk if end < 0 else chunk[:start] + chunk[end:]
    if not _TEXT.fullmatch(chunk, *found.span(2)):
        return Chunk(content, None)
    before, after = b"data: " + chunk[: found.start(2)], chunk[found.end(2) :] + b"\n\n"
    new_before = before if end < 0 else b'data: {"choices":[{"delta":'
    return Chunk(content, Pattern(before, after, new_before))


def _is_text(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False
