"""The difference of two calls: the request by block and word, the parameters, and the answers."""

from __future__ import annotations

import difflib
import itertools
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.inspection import flow_metadata

from . import blocks, bodies, text_diff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mitmproxy import http

    from .blocks import Block
    from .report import Json

__all__ = ["compare"]

MOST_MESSAGES = 200
"""Messages of each request that are aligned by their content; more are compared in order."""
LONGEST_TEXT = 200_000
"""Characters of a block that are compared."""
LONGEST = 4_000_000
"""Characters of all changed blocks together; later ones are cut, and then empty."""
MOST_COMPARED = 20
"""Changed blocks whose words are compared."""


def compare(one: http.HTTPFlow, other: http.HTTPFlow, clean: Callable[[str], str] = str) -> list[Json]:
    """The blocks of both calls in order: `{"block", "index", "change", "pieces": [{"change", "text", "volatile"}]}`.

    `block` is model, parameters, tools, response_format, system, message or answer; `index` is that of the message in the second request,
    or in the first one for a deleted message. `change` is equal, changed, inserted or deleted. Equal blocks have no pieces.
    `clean` removes secrets from the texts of changed blocks: in the pieces of two different keys, neither would be recognised.
    The work is bounded, but may take most of a second: call it in a thread.
    """
    requests = [_request(one), _request(other)]
    saved = [flow_metadata.parse(flow) for flow in (one, other)]
    answers = [list(blocks.of_items(bodies.answer(flow, known).output)) for flow, known in zip((one, other), saved, strict=True)]
    found = [
        *(
            _entry(name, None, *(_text(request, name) for request in requests))
            for name in ("model", "parameters", "tools", "response_format")
        ),
        *_messages(*(_said(request) for request in requests)),
        _entry("answer", None, *("\n\n".join(map(_shown, answer)) for answer in answers)),
    ]
    changed, left = 0, LONGEST
    for entry in found:
        if entry["change"] != "equal":
            changed += 1
            old, new = (clean(text[:LONGEST_TEXT]) + text[LONGEST_TEXT:] for text in entry.pop("texts"))
            if changed <= MOST_COMPARED and max(len(old), len(new)) <= min(LONGEST_TEXT, left):
                pieces = text_diff.compare(old, new)
            else:
                longest = min(LONGEST_TEXT, left)
                pieces = [text_diff.Piece("delete", old[:longest]), text_diff.Piece("insert", new[:longest])]
            left -= min(left, sum(len(piece.text) for piece in pieces))
            entry["pieces"] = [piece._asdict() for piece in pieces if piece.text]
        else:
            del entry["texts"]
    return found


def _request(flow: http.HTTPFlow) -> Json:
    return bodies.client_request(flow, flow_metadata.parse(flow))


def _entry(block: str, index: int | None, old: str, new: str) -> Json:
    change = "equal" if old == new else "inserted" if not old else "deleted" if not new else "changed"
    return {"block": block, "index": index, "change": change, "texts": (old, new)}


_NO_PARAMETERS = frozenset({"model", "messages", "input", "instructions", "tools", "functions", "response_format"})


def _text(request: Json, name: str) -> str:
    if name == "tools":
        parts = [request[key] for key in ("tools", "functions") if request.get(key)]
        return "\n".join(blocks.dumped(tool) for part in parts for tool in (part if isinstance(part, list) else [part]))
    if name == "parameters":
        return "\n".join(f"{key}: {blocks.dumped(part)}" for key, part in sorted(request.items()) if key not in _NO_PARAMETERS)
    value: Any = request.get(name)
    if name == "response_format" and not value:
        formats = request.get("text")
        value = formats.get("format") if isinstance(formats, dict) else None
    return value if isinstance(value, str) else blocks.dumped(value) if value else ""


type Said = tuple[str, int | None, str]
"""The block, the index of its message, and its text."""


def _said(request: Json) -> list[Said]:
    found: list[Said] = []
    instructions = request.get("instructions")
    if isinstance(instructions, str):
        found.append(("system", None, instructions))
    leading = True
    for index, item in enumerate(bodies.items(request)):
        leading = leading and blocks.role_of(item) in ("system", "developer")
        text = "\n\n".join(map(_shown, blocks.of_item(item)))
        found.append(("system" if leading else "message", index, text))
    return found


def _shown(block: Block) -> str:
    head = " ".join(part for part in (block.kind.replace("_", " "), block.name, block.call_id) if part)
    media = "".join(f"\n[{one.kind}, {len(one.data):,} characters]" for one in block.media)
    return f"{head}\n{block.text}{media}"


def _messages(old: Sequence[Said], new: Sequence[Said]) -> Iterator[Json]:
    same = 0
    while same < min(len(old), len(new)) and old[same][2] == new[same][2]:
        same += 1
    yield from (_entry(block, index, text, text) for block, index, text in new[:same])
    old, new = old[same:], new[same:]
    if max(len(old), len(new)) > MOST_MESSAGES:
        yield from itertools.starmap(_paired, itertools.zip_longest(old, new))
        return
    before, after = ([text for _, _, text in said] for said in (old, new))
    for change, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if change == "equal":
            yield from (_entry(block, index, text, text) for block, index, text in new[c:d])
        else:
            yield from itertools.starmap(_paired, itertools.zip_longest(old[a:b], new[c:d]))


def _paired(old: Said | None, new: Said | None) -> Json:
    block, index, _ = new or old or ("message", None, "")
    return _entry(block, index, old[2] if old else "", new[2] if new else "")
