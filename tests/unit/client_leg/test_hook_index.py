"""Hooks by the index are the hooks that mitmproxy would call, in its order."""

from __future__ import annotations

import asyncio
import logging
import types
from typing import TYPE_CHECKING, Any, cast

import pytest
from mitmproxy import addonmanager, ctx, exceptions, hooks, options
from mitmproxy.addons import default_addons, onboarding
from mitmproxy.addons.dumper import Dumper
from mitmproxy.proxy.layers.http import HttpRequestHook, HttpResponseHook
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.client_leg import hook_index
from azure_openai_proxy.client_leg.idle_addons import IDLE, is_idle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mitmproxy import http


class Asked:
    """An addon that says when it was asked."""

    def __init__(self, name: str, said: list[str], *addons: object, fails: Exception | None = None) -> None:
        self.name, self.said, self.addons, self.fails = name, said, addons, fails

    def request(self, flow: http.HTTPFlow) -> None:
        self.said.append(self.name)
        if self.fails:
            raise self.fails

    def update(self, flows: list[http.HTTPFlow]) -> None:
        self.said.append(f"{self.name} {len(flows)}")


class Later(Asked):
    async def response(self, flow: http.HTTPFlow) -> None:
        self.said.append(self.name)
        if self.fails:
            raise self.fails


@pytest.fixture
async def manager() -> AsyncIterator[Any]:  # mitmproxy wants a running loop
    with taddons.context(loadcore=False) as context:
        found = context.master.addons
        hook_index.shorten(found)
        yield found
        hook_index.restore(found)
        assert addonmanager.AddonManager is type(found)


async def test_the_same_hooks_in_the_same_order() -> None:
    """With every addon of mitmdump and every hook, each that has something to do is in the index, where mitmproxy has it."""
    with taddons.context(*default_addons(), Dumper(), loadcore=False) as context:
        stock = context.master.addons
        event = HttpRequestHook(tflow.tflow())
        expected = [one for addon in stock.chain for one, _ in stock._iter_hooks(addon, event)]
        hook_index.shorten(stock)
        manager = cast("hook_index.Indexed", stock)
        for option in IDLE.values():
            assert option in context.options
        found = [one for one in expected if not is_idle(one, context.options)]
        assert len(found) < len(expected)
        assert len(found) == sum(map(len, manager.groups(HttpRequestHook)))
        hook_index.restore(stock)


@pytest.mark.parametrize(("kind", "option"), IDLE.items(), ids=lambda value: getattr(value, "__name__", str(value)))
async def test_idle_addons_do_nothing(kind: type, option: str) -> None:
    """An addon that is left out would not have touched the flow; the moment its option is set it is back."""
    with taddons.context() as context:
        addon = kind()
        context.master.addons.add(addon)
        hook_index.shorten(context.master.addons)
        manager = cast("hook_index.Indexed", context.master.addons)
        off: Any = {"flow_detail": 0, "onboarding": False}.get(option, getattr(context.options, option))
        context.options.update(**{option: off})
        assert is_idle(addon, context.options)
        flow = tflow.tflow(resp=True)
        before = flow.get_state()
        for name in ("request", "response", "requestheaders", "responseheaders", "error"):
            if (hook := getattr(addon, name, None)) and (waiting := hook(flow)):
                await waiting
        assert before == flow.get_state()
        manager.index[HttpRequestHook] = hook_index.Listed("flow", [], [])
        on = {bool: True, int: 1}.get(context.options._options[option].typespec)
        if on is not None:
            context.options.update(**{option: on})
            assert {} == manager.index
            assert not is_idle(addon, context.options)
        hook_index.restore(context.master.addons)


async def test_comes_and_goes(manager: Any) -> None:
    """An addon that comes, goes, or is put into the chain by hand is asked from the next hook on, sub-addons after it."""
    said: list[str] = []
    event = HttpRequestHook(tflow.tflow())
    first, second = Asked("first", said, Asked("under", said)), Asked("second", said)
    for change, expected in (
        (lambda: manager.add(first), ["first", "under", "first 1", "under 1"]),
        (lambda: manager.chain.append(second), ["first", "under", "second", "first 1", "under 1", "second 1"]),
        (lambda: manager.remove(first), ["second", "second 1"]),
        (manager.clear, []),
    ):
        if change == manager.clear:
            manager.chain.clear()
        change()
        said.clear()
        await manager.handle_lifecycle(event)
        assert expected == said


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_addon_that_fails(manager: Any, caplog: pytest.LogCaptureFixture, asynchronous: bool) -> None:
    """The exception is logged with its own lines and the next addon is called, except those below the failed one; a halt ends the hook."""
    said: list[str] = []
    event: hooks.Hook = HttpResponseHook(tflow.tflow()) if asynchronous else HttpRequestHook(tflow.tflow())
    kind = Later if asynchronous else Asked
    manager.add(kind("fails", said, kind("under", said), fails=ValueError("oh")), kind("next", said))
    manager.add(kind("halts", said, fails=exceptions.AddonHalt()), kind("last", said))
    with caplog.at_level(logging.ERROR):
        await manager.handle_lifecycle(event)
    assert ["fails", "next", "halts"] == said[:3]
    assert "last" not in said
    assert "Addon error: oh" in caplog.text


async def test_options_errors_pass(manager: Any) -> None:
    """As in mitmproxy: the error is raised to the caller that set the option."""
    manager.add(Asked("fails", [], fails=exceptions.OptionsError("no")))
    with pytest.raises(exceptions.OptionsError):
        await manager.handle_lifecycle(HttpRequestHook(tflow.tflow()))


async def test_what_is_no_hook(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A module by the name of a hook is none; anything else that cannot be called is an error at each hook."""
    manager.add(types.SimpleNamespace(name="module", request=logging), types.SimpleNamespace(name="number", request=1))
    await manager.handle_lifecycle(HttpRequestHook(tflow.tflow()))
    assert "Addon handler request" in caplog.text
    assert 1 == len(caplog.records)


async def test_in_place(manager: Any) -> None:
    """Hooks that wait for nothing are asked at once; from the first that waits on, the rest goes mitmproxy's way, and none twice."""
    said: list[str] = []
    manager.add(Asked("one", said))
    assert hook_index.in_place(HttpRequestHook(tflow.tflow()))
    assert ["one", "one 1"] == said
    manager.add(later := Later("later", said))
    said.clear()
    event = HttpResponseHook(tflow.tflow())
    assert not hook_index.in_place(event)
    assert [] == said
    await manager.handle_lifecycle(event)
    assert ["later", "one 1", "later 1"] == said
    manager.remove(later)


async def test_intercepted(manager: Any) -> None:
    """A flow that a hook intercepts is handled by mitmproxy, and no hook is called twice."""
    said: list[str] = []
    manager.add(Asked("one", said))
    flow = tflow.tflow()
    flow.intercepted = True
    event = HttpRequestHook(flow)
    assert not hook_index.in_place(event)
    await manager.handle_lifecycle(event)
    assert ["one", "one 1"] == said


async def test_other_hooks(manager: Any) -> None:
    """A hook that is of no flow has no update behind it."""
    said: list[object] = []
    manager.add(types.SimpleNamespace(name="one", client_connected=said.append, update=said.append))
    await manager.handle_lifecycle(ClientConnectedHook(client := tflow.tclient_conn()))
    assert [client] == said


async def test_onboarding() -> None:
    """Its pages are there, and no other request waits for it."""
    with taddons.context(addon := onboarding.Onboarding()) as context:
        context.options.update(onboarding=True)
        hook_index.shorten(context.master.addons)
        assert hook_index.in_place(HttpRequestHook(tflow.tflow()))
        flow = tflow.tflow()
        flow.live = True
        flow.request.host, flow.request.port = addon.host, 80
        event = HttpRequestHook(flow)
        assert not hook_index.in_place(event)
        await context.master.addons.handle_lifecycle(event)
        assert flow.response
        hook_index.restore(context.master.addons)


async def test_without_the_index() -> None:
    """Nothing is asked in place when mitmproxy's own manager is at work, and a manager of some other kind is left alone."""
    with taddons.context() as context:
        assert ctx.master is context.master
        assert not hook_index.in_place(HttpRequestHook(tflow.tflow()))
        hook_index.restore(context.master.addons)

        class Other(addonmanager.AddonManager):
            pass

        other = cast("Any", Other)(context.master)
        hook_index.shorten(other)
        hook_index.restore(other)
        assert Other is type(other)
        assert isinstance(context.options, options.Options)


async def test_the_log() -> None:
    """A line is an event from the moment that an addon has a hook for it."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    logger = logging.getLogger("mitmproxy.test")
    with taddons.context(loadcore=False) as context:  # in a test mitmproxy's log has only the records since its own start
        manager = context.master.addons
        hook_index.shorten(manager)
        for line in ("zero", "one"):
            logger.error(line)
        await asyncio.sleep(0)  # an event would have been under way
        manager.add(types.SimpleNamespace(add_log=lambda entry: lines.put_nowait(entry.msg.split()[-1])))
        logger.error("two")
        assert "two" == await lines.get()
        hook_index.restore(manager)
        logger.error("three")
        assert "three" == await lines.get()
