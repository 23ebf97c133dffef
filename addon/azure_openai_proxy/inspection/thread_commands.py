"""The mitmproxy commands that show and share threads, such as `azure.cache @focus`.

mitmweb accepts only letters and dots in the name of a command.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - mitmproxy reads the annotations of commands
from typing import TYPE_CHECKING

import mitmproxy.types
from mitmproxy import command, ctx, exceptions, flow, http

from azure_openai_proxy.formats import quoting
from azure_openai_proxy.formats.paths import expanded

from . import text as readable_text
from .sharing import document, guarded, redact
from .sharing.share import SHARED, write
from .sharing.share import share as shared
from .threads import diff as differences
from .threads import sockets
from .threads.store import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_openai_proxy.config.settings import Settings

    from .threads.report import Json

__all__ = ["ThreadCommands"]


class ThreadCommands:
    """The threads of all flows in the list, which are read when a command needs them."""

    name = "azure_openai_threads"

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._threads = Threads(lambda: settings().prices)
        self._read: dict[str, tuple[object, ...]] = {}  # by the id of a flow: its state when it was read

    @command.command("azure.threads")
    def threads(self) -> str:
        """All threads: client, model, calls, duration, tokens, cost and errors, and for each call why the prompt cache was not used."""
        return shared(self._all([]), "text", None, self._redactor()).rstrip("\n")

    @command.command("azure.thread")
    def thread(self, flows: Sequence[flow.Flow]) -> str:
        """The conversation of each flow's thread."""
        threads, ids = self._of(flows)
        return shared(threads, "text", ids, self._redactor()).rstrip("\n")

    @command.command("azure.diff")
    def diff(self, flows: Sequence[flow.Flow]) -> str:
        """The difference of two calls by block: model, parameters, tools, response format, system, messages and answer."""
        calls = [one for one in flows if isinstance(one, http.HTTPFlow)]
        if len(calls) != 2:
            raise exceptions.CommandError("Choose two flows, as with @marked.")
        redactor = self._redactor()
        entries = redactor.redact(differences.compare(calls[0], calls[1], redactor.text))
        return readable_text.clean("\n".join(_difference(entry) for entry in entries))

    @command.command("azure.cache")
    def cache(self, flows: Sequence[flow.Flow]) -> str:
        """How much of each call's prompt was cached, and why not more."""
        threads, _ = self._of(flows)
        lines = []
        for called in (id for one in flows for id in threads.calls_of(one.id)):
            if (id := threads.thread_of(called)) is not None:
                call = next(call for call in threads.thread(id)["calls"] if call["id"] == called)
                known = call["cache"]
                cached = "unknown" if known["cached_tokens"] is None else f"{known['cached_tokens']:,}"
                lines.append(document.why(known) or f"cache: {cached} tokens, {known['expected_tokens']:,} expected")
        return "\n".join(map(quoting.line, lines))

    @command.command("azure.share.formats")
    def formats(self) -> Sequence[str]:
        """The formats of azure.share."""
        return list(SHARED)

    @command.command("azure.share")
    @command.argument("format", type=mitmproxy.types.Choice("azure.share.formats"))
    @command.argument("path", type=mitmproxy.types.Path)
    def share(self, format: str, flows: Sequence[flow.Flow], path: str, redacted: str = "") -> str:
        """Write the threads of flows to a file, without keys. `redacted`: emails,ips,hosts,paths and patterns to remove too."""
        threads, ids = self._of(flows)
        try:
            with guarded.guarded(_choice(redacted)) as choice:
                redactor = self._redactor(choice)
                text = shared(threads, format, ids, redactor)
        except guarded.TooSlow as error:
            raise exceptions.CommandError("The search of the patterns takes too long.") from error
        try:
            write(str(expanded(path)), text)
        except OSError as error:
            raise exceptions.CommandError(quoting.line(f"{path} cannot be written: {error.strerror}")) from error
        removed = ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in redactor.removed.items())
        return quoting.line(f"Written to {path}; removed: {removed or 'nothing'}.")

    def _redactor(self, choice: redact.Choice = redact.Choice()) -> redact.Redactor:  # noqa: B008 - immutable
        return redact.Redactor(choice, self._settings().tokens)

    def _of(self, flows: Sequence[flow.Flow]) -> tuple[Threads, list[str]]:
        threads = self._all(flows)
        ids = list(dict.fromkeys(id for one in flows for id in threads.threads_of(one.id)))
        if not ids:
            raise exceptions.CommandError("None of these flows is a chat or a response.")
        return threads, ids

    def _all(self, given: Sequence[flow.Flow]) -> Threads:
        """The threads of all flows in the list; of the given ones without a list, as in mitmdump."""
        view = ctx.master.addons.get("view")
        flows: Sequence[flow.Flow] = ctx.master.commands.call("view.flows.resolve", "@all") if view is not None else given
        states = {one.id: _state(one) for one in flows if isinstance(one, http.HTTPFlow)}
        for id in self._read.keys() - states.keys():
            self._threads.remove(id)
        for _ in self._threads.load(one for one in flows if self._read.get(one.id) != states.get(one.id)):
            pass
        self._read = states
        return self._threads


def _choice(text: str) -> redact.Choice:
    try:
        return redact.parse([text])
    except redact.BadPattern as error:
        raise exceptions.CommandError(quoting.line(str(error))) from error


def _state(one: http.HTTPFlow) -> tuple[object, ...]:
    """What changes when a flow has to be read again."""
    response = one.response
    return (
        one.request.timestamp_end,
        response and response.timestamp_end,
        one.error and one.error.timestamp,
        len(one.metadata),
        sockets.stamp(one),
    )


def _difference(entry: Json) -> str:
    place = entry["block"] + (f" {entry['index']}" if entry["index"] is not None else "")
    if entry["change"] == "equal":
        return f"  {place}: equal"
    signs = {"equal": "", "delete": "[-{}-]", "insert": "{{+{}+}}"}
    pieces = ((signs[piece["change"]] or "{}").format(_shortened(piece)) for piece in entry["pieces"])
    return f"≠ {place}: {entry['change']}\n{''.join(pieces)}"


def _shortened(piece: Json) -> str:
    text: str = piece["text"]
    if piece["change"] == "equal" and len(text) > 200:
        return f"{text[:80]} … {text[-80:]}"
    return text if len(text) <= 20_000 else f"{text[:20_000]}…"
