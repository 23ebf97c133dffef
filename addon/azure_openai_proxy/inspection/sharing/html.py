"""Threads as one HTML file that needs neither a script nor a network. All links lead to places in the file itself."""

from __future__ import annotations

import datetime as dt
import html
import re
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import quoting

from . import document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_openai_proxy.inspection.threads.report import Json

__all__ = ["page"]

LARGEST_MEDIA = 40 << 20
"""Characters of all images and sounds together."""
_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")
_SOUND = re.compile(r"data:audio/(?:aac|flac|mp3|mp4|mpeg|ogg|opus|wav|webm|x-wav);base64,[A-Za-z0-9+/=]+")
_STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8881;--accent:#2563eb}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.3rem;overflow-wrap:anywhere}h2{font-size:1rem;margin:0}h3{font-size:.85rem;margin:.6rem 0 .2rem}
.facts{color:GrayText;font-size:.9rem;overflow-wrap:anywhere}
section{border-top:1px solid var(--line);margin-top:1.5rem;padding-top:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;padding:.5rem;background:var(--soft);border-radius:.3rem;font-size:.85rem}
article{margin:.8rem 0 .8rem;padding-left:.7rem;border-left:3px solid var(--line)}
.user{border-color:#16a34a}.assistant{border-color:var(--accent)}.system{border-color:#9333ea}.tool_call,.tool_result{border-color:#d97706}
.why{color:#b45309}img{max-width:100%;max-height:20rem}audio{max-width:100%}
.axis{position:relative;height:.6rem;background:var(--soft);border-radius:.3rem;margin:.2rem 0}
.axis span{position:absolute;top:0;bottom:0;min-width:2px;background:var(--accent);border-radius:.3rem}
"""


def page(threads: list[Json]) -> str:
    """The whole file."""
    title = _text(quoting.line(threads[0]["title"] if threads else "") or "Threads")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    media = _Media()
    links = "".join(
        f'<li><a href="#thread-{number}">{_text(quoting.line(thread["title"]) or "Thread")}</a></li>'
        for number, thread in enumerate(threads, 1)
    )
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
    )
    parts = (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{_STYLE}</style></head><body><main>\n',
        f'<nav aria-label="Threads"><ul>{links}</ul></nav>\n' if len(threads) > 1 else "",
        *(piece for number, thread in enumerate(threads, 1) for piece in _thread(thread, number, media)),
        "</main></body></html>\n",
    )
    return "".join(parts)


class _Media:
    """Includes images and sounds up to a total size."""

    def __init__(self) -> None:
        self.left = LARGEST_MEDIA

    def element(self, media: Json) -> str:
        data = media["data"]
        name = _text(" ".join(filter(None, [media["kind"], media["name"]])))
        if len(data) <= self.left:
            if media["kind"] == "image" and _IMAGE.fullmatch(data):
                self.left -= len(data)
                return f'<p><img alt="{name}" src="{data}"></p>'
            if media["kind"] == "audio" and _SOUND.fullmatch(data):
                self.left -= len(data)
                return f'<p><audio controls aria-label="{name}" src="{data}"></audio></p>'
        return f"<p>[{name}]</p>"


def _thread(thread: Json, number: int, media: _Media) -> Iterator[str]:
    yield f'<section id="thread-{number}"><h1>{_text(quoting.line(thread["title"]) or "Thread")}</h1>\n'
    yield f'<p class="facts">{_text(thread["started"])} · {_text(document.thread_line(thread))}</p>\n'
    begin, whole = _seconds(thread["started"]), max(1, thread["duration_ms"] or 1)
    for place, call in enumerate(thread["calls"], 1):
        yield f'<h2 id="call-{number}-{place}">Call {place}</h2><p class="facts">{_text(document.call_line(call))}</p>\n'
        left = min(100.0, max(0.0, (_seconds(call["started"]) - begin) * 100_000 / whole))
        width = min(100.0 - left, (call["latency_ms"]["total"] or 0) * 100 / whole)
        yield f'<div class="axis" aria-hidden="true"><span style="left:{left:.2f}%;width:{width:.2f}%"></span></div>\n'
        if reason := document.why(call["cache"]):
            yield f'<p class="why">{_text(reason)}</p>\n'
        for block in (*(one for one in call["new"] if not one.get("beside_call")), *call["answer"]):
            yield from _block(block, media)
    yield "</section>\n"


def _block(block: Json, media: _Media) -> Iterator[str]:
    kind = block["kind"] if block["kind"] in document.BLOCKS else "other"
    yield f'<article class="{kind}"><h3>{_text(quoting.line(document.heading(block)))}</h3>'
    yield _body(block, media)
    if result := block.get("result"):
        yield f"<h3>tool result</h3>{_body(result, media)}"
    yield "</article>\n"


def _body(block: Json, media: _Media) -> str:
    more = block.get("more_characters")
    text = f"<pre>{_text(block['text'])}</pre>" if block["text"] else ""
    note = f"<p>… {more:,} more characters</p>" if more else ""
    return text + note + "".join(map(media.element, block.get("media", ())))


def _text(text: str) -> str:
    return html.escape(quoting.terminal(text.encode("utf-8", "replace").decode()))


def _seconds(iso: str) -> float:
    try:
        return dt.datetime.fromisoformat(iso).timestamp()
    except ValueError:  # a user's pattern has removed it
        return 0.0
