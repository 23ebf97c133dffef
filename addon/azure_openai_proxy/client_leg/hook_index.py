"""An index of mitmproxy's hooks.

For each hook of a request, mitmproxy looks up the hook in each of its 36 or so addons, and most implementations do nothing because their
option is not set. Here an index lists the implementations of each hook in mitmproxy's order, without idle addons of mitmproxy. The index is
cleared when an addon is added or removed or an option changes, and rebuilt at the next hook.

This applies only to hooks of connections (`handle_lifecycle`), not to load, configure, running and done, nor to `trigger_event`.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mitmproxy import ctx, exceptions, hooks
from mitmproxy.addonmanager import AddonManager, logger, traverse
from mitmproxy.flow import Flow
from mitmproxy.log import AddLogHook, LegacyLogEvents

from .idle_addons import if_needed, is_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    type Hook = Callable[[Any], Any]
    type Groups = list[list[Hook]]  # one list for each addon in the chain, including its sub-addons
    type Asking = Generator[Awaitable[Any], None, None]

__all__ = ["Indexed", "in_place", "restore", "shorten"]

BEGUN = "azure_openai_begun"
"""Attribute of a hook whose dispatch was started without a task and must be continued in one."""


class Listed(NamedTuple):
    """What a hook calls."""

    argument: str  # the name of its single argument
    groups: Groups
    updates: Groups  # of `update`, which follows the hooks of a flow


class Indexed(AddonManager):
    """mitmproxy's addon manager with an index of hooks."""

    index: dict[type[hooks.Hook], Listed]
    indexed: list[Any]  # the chain from which the index was built

    def forget(self, *_: object, **__: object) -> None:
        self.index = {}

    def register(self, addon: Any) -> Any:
        self.forget()
        return cast("Any", super()).register(addon)

    def remove(self, addon: Any) -> None:
        self.forget()
        cast("Any", super()).remove(addon)

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        _, waiting, asking = vars(event).pop(BEGUN, None) or self.begin(event)
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
        begun = message, waiting, _ = self.begin(event)
        if waiting is None and not message.intercepted:
            return True
        setattr(event, BEGUN, begun)
        return False

    def begin(self, event: hooks.Hook) -> tuple[Any, Awaitable[Any] | None, Asking]:
        """As `handle_lifecycle` up to the first awaitable. Return the argument of the hook, too, and a generator of the next awaitables."""
        argument, groups, updates = self.listed(type(event))
        message = getattr(event, argument)
        asking = self.ask_all(groups, updates, message) if updates and isinstance(message, Flow) else self.ask(groups, message)
        return message, next(asking, None), asking

    def ask_all(self, groups: Groups, updates: Groups, flow: Flow) -> Asking:
        yield from self.ask(groups, flow)
        yield from self.ask(updates, [flow])

    def ask(self, groups: Groups, message: object) -> Asking:
        """As `trigger_event`: log the error of an addon and continue with the next one. Awaitables are yielded."""
        for group in groups:
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

    def listed(self, kind: type[hooks.Hook]) -> Listed:
        """The implementations of a hook. The chain may have been modified directly."""
        if self.indexed != self.chain:
            self.forget()
            self.indexed = list(self.chain)
        if kind not in self.index:
            self.index[kind] = Listed(_argument(kind), self.groups(kind), self.groups(hooks.UpdateHook))
        return self.index[kind]

    def groups(self, kind: type[hooks.Hook]) -> Groups:
        found = ([_hook(one, kind.name) for one in traverse([addon]) if self.has(one, kind.name)] for addon in self.chain)
        return [group for group in found if group]

    def wants_logs(self, _: logging.LogRecord) -> bool:
        """Whether an addon implements `add_log`. Otherwise log records need not be events; mitmproxy logs four per connection."""
        return bool(self.listed(AddLogHook).groups)

    def has(self, addon: object, name: str) -> bool:
        hook = getattr(addon, name, None)
        return bool(hook) and not isinstance(hook, ModuleType) and not is_idle(addon, self.master.options)


def _hook(addon: object, name: str) -> Hook:
    hook = getattr(addon, name)
    return if_needed(addon, name, hook) if callable(hook) else partial(_refuse, f"Addon handler {name} ({addon}) not callable")


def _refuse(message: str, _: object) -> None:
    raise exceptions.AddonManagerError(message)


def _argument(kind: Any) -> str:
    """The name of the single argument of a hook."""
    (field,) = dataclasses.fields(kind)
    return str(field.name)


def in_place(event: hooks.Hook) -> bool:
    """Dispatch a hook immediately if possible. Return False if mitmproxy must dispatch it."""
    manager = ctx.master.addons
    return isinstance(manager, Indexed) and manager.in_place(event)


def _log_events(manager: AddonManager) -> list[LegacyLogEvents]:
    """The log handlers that create events."""
    found = (handler for handler in logging.getLogger().handlers if isinstance(handler, LegacyLogEvents))
    return [handler for handler in found if handler.master is manager.master]


def shorten(manager: AddonManager) -> None:
    """Use the index for the hooks of connections, unless it is in use, or the manager is not mitmproxy's own."""
    if type(manager) is not AddonManager:
        return
    manager.__class__ = Indexed
    indexed = cast("Indexed", manager)
    indexed.indexed = []
    indexed.forget()
    manager.master.options.changed.connect(indexed.forget)
    for handler in _log_events(manager):
        handler.addFilter(indexed.wants_logs)


def restore(manager: AddonManager) -> None:
    """Restore mitmproxy's own dispatch."""
    if not isinstance(manager, Indexed):
        return
    manager.master.options.changed.disconnect(manager.forget)
    for handler in _log_events(manager):
        handler.removeFilter(manager.wants_logs)
    cast("AddonManager", manager).__class__ = AddonManager
