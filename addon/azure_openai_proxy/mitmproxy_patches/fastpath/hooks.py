"""Faster dispatch of mitmproxy's hooks.

For each hook of a request, mitmproxy looks up the hook in each of its 36 or so addons, and most implementations do nothing because their
option is not set. Here an index lists the implementations of each hook in mitmproxy's order, without idle addons of mitmproxy. The index is
cleared when an addon is added or removed or an option changes, and rebuilt at the next hook.

This applies only to hooks of connections (`handle_lifecycle`), not to load, configure, running and done, nor to `trigger_event`.
Log records are dispatched as events only if an addon implements `add_log`.
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
"""Addons of mitmproxy that do nothing in the hooks of connections while the given option is off or empty."""

BEGUN = "azure_openai_begun"
"""Attribute of a hook whose dispatch was started without a task and must be continued in one."""


class Indexed(AddonManager):
    """mitmproxy's addon manager with an index of hooks."""

    index: dict[type[hooks.Hook], list[list[Hook]]]  # one list for each addon in the chain, including its sub-addons
    implemented: dict[type[hooks.Hook], bool]  # whether any addon implements the hook, idle or not
    indexed: list[Any]  # the chain from which the index was built

    def forget(self, *_: object, **__: object) -> None:
        self.index, self.implemented = {}, {}

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
        """Clear the index if the chain was modified directly."""
        if self.indexed != self.chain:
            self.forget()
            self.indexed = list(self.chain)

    def is_implemented(self, kind: type[hooks.Hook]) -> bool:
        """Whether any addon implements the hook."""
        self.catch_up()
        if kind not in self.implemented:
            self.implemented[kind] = any(getattr(one, kind.name, None) for addon in self.chain for one in traverse([addon]))
        return self.implemented[kind]

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
            except Exception as error:  # noqa: BLE001 - handled by `ask`
                with suppress(StopIteration):
                    waiting = asking.throw(error)
                    continue
            waiting = next(asking, None)

    def in_place(self, event: hooks.Hook) -> bool:
        """Dispatch a hook immediately, without a task. Return False if something must be awaited, so that mitmproxy must continue it."""
        asking = self.life(event)
        waiting = next(asking, None)
        if waiting is None and not getattr(event, _argument(cast("Any", type(event)))).intercepted:
            return True
        setattr(event, BEGUN, (waiting, asking))
        return False

    def life(self, event: hooks.Hook) -> Asking:
        """As `handle_lifecycle`, but yield awaitables instead of awaiting them."""
        message = getattr(event, _argument(cast("Any", type(event))))
        yield from self.ask(type(event), message)
        if isinstance(message, Flow):
            yield from self.ask(hooks.UpdateHook, [message])

    def ask(self, kind: type[hooks.Hook], message: object) -> Asking:
        """As `trigger_event`: log the error of an addon and continue with the next one. Awaitables are yielded."""
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
            except Exception:  # noqa: BLE001 - any error, as in mitmproxy
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
    """Creates events for log records only if an addon implements `add_log`. mitmproxy always does, and logs four records per connection."""

    def emit(self, record: logging.LogRecord) -> None:
        manager = self.master.addons
        if not isinstance(manager, Indexed) or manager.is_implemented(AddLogHook):
            super().emit(record)


def _hook(addon: object, name: str) -> Hook:
    hook = getattr(addon, name)
    if not callable(hook):
        return partial(_refuse, f"Addon handler {name} ({addon}) not callable")
    if type(addon) is onboarding.Onboarding:  # asynchronous, and only for one host
        return lambda flow: hook(flow) if _names(flow, addon.host) and addon.should_serve(flow) else None
    return cast("Hook", hook)


def _names(flow: HTTPFlow, host: str) -> bool:
    """Whether the request may be for `host`: a cheap test before the exact one."""
    data = flow.request.data
    return host in data.host or host.encode() in data.authority or host in data.headers.get("host", "")


def _refuse(message: str, _: object) -> None:
    raise exceptions.AddonManagerError(message)


@cache
def _argument(event: Any) -> str:
    """The name of the single argument of a hook of connections."""
    (field,) = dataclasses.fields(event)
    return str(field.name)


def in_place(event: hooks.Hook) -> bool:
    """Dispatch a hook immediately if possible. Return False if mitmproxy must dispatch it."""
    manager = ctx.master.addons
    return isinstance(manager, Indexed) and manager.in_place(event)


def _log_events(manager: AddonManager) -> LegacyLogEvents:
    return cast("LegacyLogEvents", manager.master._legacy_log_events)  # noqa: SLF001 - there is no public attribute


def shorten(manager: AddonManager) -> None:
    """Use the index for the hooks of connections."""
    if type(manager) is AddonManager:
        manager.__class__ = Indexed
        indexed = cast("Indexed", manager)
        indexed.indexed = []
        indexed.forget()
        manager.master.options.changed.connect(indexed.forget)
        _log_events(manager).__class__ = Events


def restore(manager: AddonManager) -> None:
    """Restore mitmproxy's own dispatch."""
    if isinstance(manager, Indexed):
        manager.master.options.changed.disconnect(manager.forget)
        _log_events(manager).__class__ = LegacyLogEvents
        cast("AddonManager", manager).__class__ = AddonManager
