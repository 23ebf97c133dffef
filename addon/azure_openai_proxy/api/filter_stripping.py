"""Fast removal of Azure's filter results from a chunk of a chat stream. With Azure's default filter every chunk has them.

One regular expression has to match the whole chunk: JSON as Azure writes it, with one choice that begins with `content_filter_results` and
continues with its `delta`. Any other chunk is left to the parser. A regular expression cannot follow nesting, so it spells out the three
levels of a delta with tool calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
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
_TEXTS = re.compile(rb'\{"content":%b\}(?:\n\{"content":%b\})*+' % (_STRING, _STRING))


@dataclass(frozen=True, slots=True)  # a named tuple takes twice the time to read
class Pattern:
    """The constant bytes around the text of one stream's events, before and after the removal. Most events of a stream differ only in the
    text.
    """

    before: bytes
    after: bytes
    new_before: bytes
    new_after: bytes

    def cut(self, event: bytes) -> bytes | None:
        """Return `event` as `without_filter` does; the same object if nothing is removed. Return None if a parser is needed.

        The bytes before and after the delta were already validated. The delta has a text and no other member.
        """
        if not (event.startswith(self.before) and event.endswith(self.after)):
            return None
        text = event[len(self.before) : len(event) - len(self.after)]
        if not _TEXT.fullmatch(text) or not _is_text(text):
            return None
        if self.before == self.new_before and self.after == self.new_after:
            return event
        return self.new_before + text + self.new_after

    def of(self, received: bytes, event: bytes) -> Pattern | None:
        """Return the pattern of `received`, from which bytes after the text were removed to give `event`, the event of this pattern.

        None: other bytes were removed.
        """
        if received is event:
            return self
        kept = len(event) - len(self.after)
        if not event.endswith(self.after) or received[:kept] != event[:kept]:
            return None
        return replace(self, after=received[kept:])

    def cut_all(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """Return the results of `cut` for the events that start at `at` and match, and the end of the last one.

        Return None if the first event does not match, or if an event matches except for its text.
        """
        if not data.startswith(self.before, at):
            return None
        texts = data[at + len(self.before) :].split(self.after + self.before)
        last, found, _ = texts.pop().partition(self.after)
        if found:  # otherwise the last event is incomplete
            texts.append(last)
        joined = b"\n".join(texts)  # the texts of valid events contain no line end
        if not _TEXTS.fullmatch(joined) or not _is_text(joined):
            return None
        end = at + len(joined) - len(texts) + 1 + len(texts) * (len(self.before) + len(self.after))
        return b"%b%b%b" % (self.new_before, (self.new_after + self.new_before).join(texts), self.new_after), end


class Chunk(NamedTuple):
    """A chunk without its choice's filter results and with all other bytes unchanged."""

    content: bytes
    pattern: Pattern | None  # for the event, written as `data: ...` and a blank line


def without_filter(chunk: bytes) -> Chunk | None:
    """Remove the filter results. Return the same object as the content if there are none, and None if a parser is needed."""
    found = _CHUNK.fullmatch(chunk)
    if not found or not _is_text(chunk):
        return None
    start, end = found.span(1)
    content = chunk if end < 0 else chunk[:start] + chunk[end:]
    if not _TEXT.fullmatch(chunk, *found.span(2)):
        return Chunk(content, None)
    before, after = b"data: " + chunk[: found.start(2)], chunk[found.end(2) :] + b"\n\n"
    new_before = before if end < 0 else b'data: {"choices":[{"delta":'
    return Chunk(content, Pattern(before, after, new_before, after))


def _is_text(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False
