"""The mitmproxy commands of the addon, such as `azure.explain @focus` in mitmweb's command bar, or after `:` in the console.

mitmweb accepts only letters and dots in the name of a command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence  # noqa: TC003 - mitmproxy reads the annotations of commands
from typing import TYPE_CHECKING

import mitmproxy.types
from mitmproxy import command, ctx, exceptions, flow, hooks, http
from mitmproxy.addons.clientplayback import ReplayHandler
from mitmproxy.log import ALERT

from azure_openai_proxy.formats import quoting

from . import explain as explanations
from . import export as exports
from . import flow_metadata, request_replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.routing.pool import View
    from azure_openai_proxy.routing.state import Shared

__all__ = ["Commands"]

logger = logging.getLogger(__name__)


class Commands:
    name = "azure_openai_commands"

    def __init__(self, settings: Callable[[], Settings], shared: Shared) -> None:
        self._settings, self._shared = settings, shared
        self._running: set[asyncio.Task[None]] = set()

    @command.command("azure.backends")
    def backends(self) -> Sequence[str]:
        """Each backend: its state, requests in flight, cool-down, the reason for its last request, and the repairs learned for it."""
        return [quoting.line(line) for view in self._shared.pool.views() for line in self._describe(view)]

    def _describe(self, view: View) -> Iterator[str]:
        backend = view.backend
        parts = [
            view.state,
            f"{view.in_flight} in flight",
            f"priority {backend.priority}",
            f"weight {backend.weight}",
            *([backend.kind] if backend.kind != "standard" else []),
        ]
        if view.cooling:
            parts.append(f"{view.cooling:.1f} s of its cool-down left")
        if view.first_byte is not None:
            parts.append(f"first byte after {view.first_byte:.2f} s")
        if view.reason:
            parts.append(f"last request: {view.reason}")
        if backend.entra:
            parts.append("valid token" if self._shared.has_token(backend) else "no token")
        yield f"{backend.name} {backend.base}: {', '.join(parts)}"
        for deployment, seconds in view.refused.items():
            yield f"  {deployment or 'requests without a deployment'}: rate-limited for {seconds:.1f} s"
        for deployment, seconds in view.failing.items():
            yield f"  {deployment or 'requests without a deployment'}: cooling down after a failure for {seconds:.1f} s"
        for deployment, seconds in view.absent.items():
            yield f"  {deployment}: not found; other backends are preferred for {seconds:.1f} s"
        for key, changes in self._shared.learned.all().items():
            if key.backend == backend.name:
                yield f"  {' '.join(filter(None, key[1:4]))}: {', '.join(map(str, changes))}"

    @command.command("azure.explain")
    def explain(self, flows: Sequence[flow.Flow]) -> str:
        """The proxy's decisions for each flow: operation, mapping, backend, version, and the changes to request and response."""
        return "\n\n".join(explanations.explain(one) for one in _http(flows))

    @command.command("azure.export.formats")
    def formats(self) -> Sequence[str]:
        """The formats of azure.export."""
        return list(exports.FORMATS)

    @command.command("azure.export")
    @command.argument("format", type=mitmproxy.types.Choice("azure.export.formats"))
    def export(self, format: str, flows: Sequence[flow.Flow], key: bool = False) -> str:  # noqa: FBT001, FBT002 - as commands are written
        """The request as sent to Azure, as a runnable command. The key is replaced by $AZURE_OPENAI_API_KEY; `true` includes it."""
        token = self._settings().token if key else ""
        if key and not token:
            raise exceptions.CommandError("No key is configured: clients send their own keys, which are not stored.")
        exported, found = [], _http(flows)
        for one in found:
            try:
                exported.append(exports.FORMATS[format](one.request, token))
            except ValueError as error:
                if len(found) == 1:
                    raise exceptions.CommandError(quoting.line(f"This request cannot be exported in this format: {error}.")) from error
                exported.append(quoting.line(f"# {one.request.method} {one.request.path} cannot be exported in this format: {error}"))
        return "\n\n".join(exported)

    @command.command("azure.models")
    def models(self) -> Sequence[str]:
        """The configured models and the deployments that serve them."""
        mapper = self._settings().mapper
        return [quoting.line(f"{model} → {mapper.deployment(model)}") for model in mapper.names()]

    @command.command("azure.resend")
    def resend(self, flows: Sequence[flow.Flow], deployment: str) -> str:
        """Send the requests to another deployment and compare the responses, in the log and in azure.explain of the new flow."""
        copies = [(one, _copy(one, deployment)) for one in _http(flows) if _is_resendable(one)]
        if not copies:
            raise exceptions.CommandError("None of these requests was sent to a deployment completely and without a WebSocket.")
        if (view := ctx.master.addons.get("view")) is not None:  # not `if view`: an empty view is falsy
            view.add([copy for _, copy in copies])
        for one, copy in copies:
            task = asyncio.create_task(self._resend(one, copy))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return quoting.line(f"Requests sent to {deployment}: {len(copies)}.")

    async def _resend(self, one: http.HTTPFlow, copy: http.HTTPFlow) -> None:
        await ReplayHandler(copy, ctx.options).replay()
        compared = explanations.compare(one, copy)
        copy.metadata[f"{flow_metadata.PREFIX}compared"] = compared
        logger.log(ALERT, compared)
        ctx.master.addons.trigger(hooks.UpdateHook([copy]))


def _http(flows: Sequence[flow.Flow]) -> list[http.HTTPFlow]:
    found = [one for one in flows if isinstance(one, http.HTTPFlow)]
    if not found:
        raise exceptions.CommandError("Choose HTTP flows, as in @focus, @all or @marked.")
    return found


def _is_resendable(one: http.HTTPFlow) -> bool:
    return (
        f"{flow_metadata.PREFIX}deployment" in one.metadata
        and one.request.raw_content is not None
        and one.websocket is None
        and not one.live
    )


def _copy(one: http.HTTPFlow, deployment: str) -> http.HTTPFlow:
    copy: http.HTTPFlow = one.copy()
    copy.response = copy.error = None
    copy.is_replay, copy.comment, copy.marked = "request", "", ""
    kept = {name: value for name, value in copy.metadata.items() if name == f"{flow_metadata.PREFIX}deployment"}
    copy.metadata = {**kept, request_replay.RESEND: deployment}
    return copy
