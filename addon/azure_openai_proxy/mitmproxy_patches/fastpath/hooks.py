"""A shorter way for mitmproxy's hooks; a room of `http_layer`, for it relies on how mitmproxy dispatches them.

mitmproxy asks each of its three dozen addons at each of the hooks of a request whether it has that hook, and most that have it do
nothing: their option is not set. Here one index says who has which hook, in mitmproxy's order, without its own addons that
have nothing to do. It is forgotten when an addon comes or goes and when an option changes, and made anew at the next hook.

Only what comes of connections goes this way (`handle_lifecycle`); load, configure, running and done are left alone, and so is
everybody who calls `trigger_event`. A line of the log is no event as long as no addon has a hook for it.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from contextlib import suppress
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from mitmproxy import ctx, exceptions, hooks
from mitmproxy.addonmanager import AddonManager, logger, traverse
from mitmproxy.addons import (
    anticache,
    anticomp,
    blocklist,
    dumper,
    maplocal,
    mapremote,
    modifybody,
    modifyheaders,
    onboarding,
    proxyauth,
    save,
    savehar,
    stickyauth,
    stickycookie,
    upstream_auth,
)
from mitmproxy.flow import Flow
from mitmproxy.log import AddLogHook, LegacyLogEvents

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from mitmproxy.http import HTTPFlow

    type Hook = Callable[[Any], Any]
    type Asking = Generator[Awaitable[Any], None, None]

__all__ = ["IDLE", "Indexed", "in_place", "restore", "shorten"]

IDLE: Mapping[type, str] = {
    anticache.AntiCache: "anticache",
    anticomp.AntiComp: "anticomp",
    blocklist.BlockList: "block_list",
    dumper.Dumper: "flow_detail",
    maplocal.MapLocal: "map_local",
    mapremote.MapRemote: "map_remote",
    modifybody.ModifyBody: "modify_body",
    modifyheaders.ModifyHeaders: "modify_headers",
    onboarding.Onboarding: "onboarding",
    proxyauth.ProxyAuth: "proxyauth",
    save.Save: "save_stream_file",
    savehar.SaveHar: "hardump",
    stickyauth.StickyAuth: "stickyauth",
    stickycookie.StickyCookie: "stickycookie",
    upstream_auth.UpstreamAuth: "upstream_auth",
}
"""mitmproxy's addons that do nothing in any hook of a connection while this option is off or empty."""

BEGUN = "azure_openai_begun"
"""The name of an attribute of a hook that was asked in place, as far as that went."""


class Indexed(AddonManager):
    """mitmproxy's manager, with an index."""

    index: dict[type[hooks.Hook], list[list[Hook]]]  # for each addon of the chain: its own and its sub-addons' hooks
    hears: dict[type[hooks.Hook], bool]  # whether any has it, idle or not
    indexed: list[Any]  # the chain that they are of

    def forget(self, *_: object, **__: object) -> None:
        self.index, self.hears = {}, {}

    def register(self, addon: Any) -> Any:
        self.forget()
        return cast("Any", super()).register(addon)

    def remove(self, addon: Any) -> None:
        self.forget()
        cast("Any", super()).remove(addon)

    def clear(self) -> None:
        self.forget()
        cast("Any", super()).clear()

    def catch_up(self) -> None:
        """Somebody may have changed the chain by hand."""
        if self.indexed != self.chain:
            self.forget()
            self.indexed = list(self.chain)

    def heard(self, kind: type[hooks.Hook]) -> bool:
        """Whether any addon has that hook."""
        self.catch_up()
        if kind not in self.hears:
            self.hears[kind] = any(getattr(one, kind.name, None) for addon in self.chain for one in traverse([addon]))
        return self.hears[kind]

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        begun = vars(event).pop(BEGUN, None)
        if begun is None:
            asking = self.life(event)
            waiting = next(asking, None)
        else:
            waiting, asking = begun
        while waiting is not None:
            try:
                await waiting
            except Exception as error:  # noqa: BLE001 - `ask` judges it
                with suppress(StopIteration):
                    waiting = asking.throw(error)
                    continue
            waiting = next(asking, None)

    def in_place(self, event: hooks.Hook) -> bool:
        """Ask at once, without a task. False: something is to be awaited, and the hook must go mitmproxy's way for the rest."""
        asking = self.life(event)
        waiting = next(asking, None)
        if waiting is None and not getattr(event, _argument(cast("Any", type(event)))).intercepted:
            return True
        setattr(event, BEGUN, (waiting, asking))
        return False

    def life(self, event: hooks.Hook) -> Asking:
        """Everything that `handle_lifecycle` does but the waiting."""
        message = getattr(event, _argument(cast("Any", type(event))))
        yield from self.ask(type(event), message)
        if isinstance(message, Flow):
            yield from self.ask(hooks.UpdateHook, [message])

    def ask(self, kind: type[hooks.Hook], message: object) -> Asking:
        """As `trigger_event` does: an addon that fails is logged, and the next one is asked. What is to be awaited is yielded."""
        self.catch_up()
        if kind not in self.index:
            self.index[kind] = self.groups(kind)
        for group in self.index[kind]:
            try:
                for hook in group:
                    result = hook(message)
                    if result is not None and inspect.isawaitable(result):
                        yield result
            except exceptions.AddonHalt:
                return
            except exceptions.OptionsError:
                raise
            except Exception:  # noqa: BLE001 - whatever it is, as mitmproxy has it
                kind_, error, trace = cast("Any", sys.exc_info())
                logger.error(f"Addon error: {error}", exc_info=(kind_, error, trace.tb_next or trace))

    def groups(self, kind: type[hooks.Hook]) -> list[list[Hook]]:
        found = ([_hook(one, kind.name) for one in traverse([addon]) if self.has(one, kind.name)] for addon in self.chain)
        return [group for group in found if group]

    def has(self, addon: object, name: str) -> bool:
        hook = getattr(addon, name, None)
        return bool(hook) and not isinstance(hook, ModuleType) and not self.idle(addon)

    def idle(self, addon: object) -> bool:
        option = IDLE.get(type(addon))
        return option is not None and option in self.master.options and not getattr(self.master.options, option)


class Events(LegacyLogEvents):
    """mitmproxy makes an event of each line of its log, for a hook that hardly anybody has; a connection that comes and goes logs four."""

    def emit(self, record: logging.LogRecord) -> None:
        manager = self.master.addons
        if not isinstance(manager, Indexed) or manager.heard(AddLogHook):
            super().emit(record)


def _hook(addon: object, name: str) -> Hook:
    hook = getattr(addon, name)
    if not callable(hook):
        return partial(_refuse, f"Addon handler {name} ({addon}) not callable")
    if type(addon) is onboarding.Onboarding:  # it is asynchronous, and has one host
        return lambda flow: hook(flow) if _names(flow, addon.host) and addon.should_serve(flow) else None
    return cast("Hook", hook)


def _names(flow: HTTPFlow, host: str) -> bool:
    """Whether that host may be meant: telling which host is takes a while."""
    data = flow.request.data
    return host in data.host or host.encode() in data.authority or host in data.headers.get("host", "")


def _refuse(message: str, _: object) -> None:
    raise exceptions.AddonManagerError(message)


@cache
def _argument(event: Any) -> str:
    """The name of what a hook of connections is called with: each has one argument."""
    (field,) = dataclasses.fields(event)
    return str(field.name)


def in_place(event: hooks.Hook) -> bool:
    """Ask a flow's hook at once, if that can be done; False: it must go mitmproxy's way."""
    manager = ctx.master.addons
    return isinstance(manager, Indexed) and manager.in_place(event)


def _log_events(manager: AddonManager) -> LegacyLogEvents:
    return cast("LegacyLogEvents", manager.master._legacy_log_events)  # noqa: SLF001 - nothing else has it


def shorten(manager: AddonManager) -> None:
    """Have the hooks of connections take the shorter way."""
    if type(manager) is AddonManager:
        manager.__class__ = Indexed
        indexed = cast("Indexed", manager)
        indexed.indexed = []
        indexed.forget()
        manager.master.options.changed.connect(indexed.forget)
        _log_events(manager).__class__ = Events


def restore(manager: AddonManager) -> None:
    """Have them take mitmproxy's own again."""
    if isinstance(manager, Indexed):
        manager.master.options.changed.disconnect(manager.forget)
        _log_events(manager).__class__ = LegacyLogEvents
        cast("AddonManager", manager).__class__ = AddonManager
