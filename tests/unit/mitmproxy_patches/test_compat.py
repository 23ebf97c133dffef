"""The guard over private API: it checks everything that is used, and detects each change."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import logging
import re
import select
import socket
import sys
import zlib
from collections.abc import Generator
from pathlib import Path
from types import ModuleType, SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any

import pytest
import urwid  # type: ignore[import-untyped]
from h2.events import DataReceived
from h2.settings import Settings
from mitmproxy import ctx, http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons import view
from mitmproxy.addons.view import View
from mitmproxy.connection import Client, Server
from mitmproxy.hooks import Hook
from mitmproxy.options import Options
from mitmproxy.test import taddons, tflow
from mitmproxy.tools.console.flowlist import FlowItem, FlowListWalker
from tornado.httputil import HTTPServerRequest
from tornado.web import Application
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message

import azure_openai_proxy
from azure_openai_proxy import client_leg, compatibility, errors
from azure_openai_proxy.mitmproxy_patches import compat, install
from support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(azure_openai_proxy.__file__).parent
SOURCES = sorted(path for path in PACKAGE.glob("mitmproxy_patches/**/*.py") if path.name != "compat.py")
SOURCES += [PACKAGE / "client_leg" / "hook_index.py"]  # it has a subclass of mitmproxy's
CHECKED = ("HTTP", "CONNECTIONS", "PORTS", "SHUTDOWN", "FAST_PATH")

PUBLIC = (
    *(bytes, str, int, list, dict, set, type, re.Pattern, re.Match, BaseException, Generator, TracebackType, zlib.decompressobj()),
    *(
        asyncio.AbstractEventLoop,
        asyncio.Task,
        asyncio.StreamReader,
        asyncio.StreamWriter,
        asyncio.Transport,
        socket.socket,
        select,
        logging,
        logging.Logger,
    ),
    *(http.Request, http.Response, http.Request.make("GET", "http://a/").data, tflow.tflow(), Client, Server, Options(), Options().changed),
    *(Hook, View, view.Focus, urwid.Widget, HTTPServerRequest(uri="/"), CloseConnection, Message(""), ConnectionState.OPEN),
    *(errors.Failure, Settings, DataReceived, compatibility.Feature, Application, ast),
    *(value for name in client_leg.__all__ for value in vars(importlib.import_module(f"{client_leg.__name__}.{name}")).values()),
)
"""Objects that may be used without a check: Python's, the package's own, and the documented ones of mitmproxy, tornado and wsproto."""


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mitmproxy's master, of which the fast path patches something."""
    with taddons.context() as context:
        monkeypatch.setattr(ctx, "master", context.master, raising=False)
        install.fast_path.cache_clear()
        yield context.master
        install.fast_path.cache_clear()


@pytest.mark.usefixtures("master")
@pytest.mark.parametrize("feature", CHECKED)
def test_everything_is_here(feature: str) -> None:
    """The mitmproxy that is installed has all that is used, in a tested version."""
    assert (None, None) == (compat.FEATURES[feature].missing(), compatibility.untested(compat.TESTED))


def uses() -> dict[str, set[str]]:
    """Every attribute that any feature checks, by its sample; of events and commands, which are dataclasses, the parameters."""
    found: dict[str, set[str]] = {}
    for feature in compat.FEATURES.values():
        for name, member, parameters in feature.members():
            found.setdefault(name, set()).update({member}, parameters.strip("()").split() if name == "Constructors" else ())
    return found


def modules() -> Iterator[ModuleType]:
    for path in SOURCES:
        yield importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"))


def samples() -> dict[str, object]:
    return compat.FAST_PATH.samples() | {
        "FlowItem": FlowItem,
        "FlowListWalker": FlowListWalker,
        "AddonManager": AddonManager(ctx.master),
    }


@pytest.mark.usefixtures("master")
def test_what_subclasses_use_is_checked() -> None:
    """Whatever a subclass overrides or reads of mitmproxy's class is in the table of that class."""
    checked = uses()
    seen, unchecked = set(), set()
    for module in modules():
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            kind = getattr(module, node.name)
            used = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute) and ast.unparse(one.value) in ("self", "super()")}
            used |= {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            for name, sample in samples().items():
                base = sample if isinstance(sample, type) else type(sample)
                if name in checked and name != "Context" and issubclass(kind, base):
                    seen.add(name)
                    unchecked |= {(name, one) for one in used - checked[name] - set(dir(object)) if hasattr(sample, one)}
    assert set() == unchecked
    assert {"HttpLayer", "HttpStream", "Http1Server", "WebsocketConnection", "AddonManager"} <= seen


@pytest.mark.usefixtures("master")
def test_whatever_else_is_used_is_checked() -> None:
    """Each attribute in these modules is public, our own, or in a table."""
    own: set[str] = set()
    used: dict[str, str] = {}
    for module in modules():
        tree = ast.parse(inspect.getsource(module))
        names = {name for name, value in vars(module).items() if isinstance(value, ModuleType)}
        names |= {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own |= {node.name, *vars(getattr(module, node.name)).get("__annotations__", ())}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own.add(node.name)
                if node.name == "__init__":
                    own |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)}
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                own |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value).partition(".")[0] not in names:
                used[node.attr] = f"{module.__name__}:{node.lineno} {ast.unparse(node)}"
    options = samples()["Context"].options.keys()  # type: ignore[attr-defined]
    of_instances = {"flow_controlled_length", "max_size"}  # of h2's public DataReceived in newer versions; of asyncio's own transports
    known = own.union(*uses().values(), options, of_instances, *(dir(one) for one in PUBLIC))
    assert [] == [where for name, where in used.items() if name not in known]


def test_nothing_is_checked_in_vain() -> None:
    """Each attribute in a table is used; a few are not named, for their callers or callees are replaced."""
    replaced = {"_require_auth", "drain_writers", "handle_connection"}
    elsewhere = {"auth_fail", "transform_first_chunk"}  # in inspection/site/mitmweb.py
    elsewhere |= {"host", "should_serve"}  # in client_leg/idle_addons.py
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in SOURCES)))
    passed = {"replay_flow", "status_code"}  # parameters of mitmproxy that are not named
    assert replaced | elsewhere | passed == {name for names in uses().values() for name in names if not name.startswith("__")} - words


@pytest.mark.usefixtures("master")
@pytest.mark.parametrize("name, version", [("mitmproxy", "12.9"), ("h11", "0.17"), ("Python", "3.99")])
def test_untested_versions(name: str, version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A minor version that no test ran on: the fast path is off, which is said once, and all else is on."""
    if name == "mitmproxy":
        monkeypatch.setattr("mitmproxy.version.VERSION", f"{version}.1")
    elif name == "h11":
        monkeypatch.setattr("importlib.metadata.version", lambda _: f"{version}.1")
    else:
        monkeypatch.setattr(sys, "version_info", tuple(map(int, version.split("."))))
    assert [False, False] == [install.fast_path() is not None for _ in range(2)]
    assert 1 == len(caplog.records)
    assert re.search(rf"{name} {re.escape(version)}\S*\. The fast path is off", caplog.text)
    assert compat.HTTP.usable


@pytest.mark.parametrize("off", ["HTTP", "FAST_PATH"])
def test_no_fast_path(master: Any, off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the patches, and without what only the fast path needs, nothing takes it."""
    assert install.fast_path()
    install.fast_path.cache_clear()
    monkeypatch.setitem(vars(compat.FEATURES[off]), "usable", False)
    install.set_fast_path(master, on=True)
    install.enable_direct_reads(Client(peername=("", 0), sockname=("", 0)), SimpleNamespace(fast_path=True))
    assert (False, AddonManager) == (install.fast_path() is not None, type(master.addons))


@pytest.mark.usefixtures("master")
@pytest.mark.parametrize("wanted", [False, True])
def test_direct_reads(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are direct if the policy wants the fast path."""
    told: list[object] = []
    monkeypatch.setattr(install.fast_path(), "enable_direct_reads", lambda *connections: told.append(connections))
    client = Client(peername=("", 0), sockname=("", 0))
    install.enable_direct_reads(client, SimpleNamespace(fast_path=wanted))
    assert [(client, client)] * wanted == told


@pytest.mark.usefixtures("master")
def test_all_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each feature that is off names everything that its user loses."""
    features = ("HTTP", "CONNECTIONS", "SHUTDOWN")
    for name in features:
        vars(compat.FEATURES[name]).pop("usable", None)
        monkeypatch.setattr(compat.FEATURES[name], "missing", lambda: "nonsense")
    install.check()
    install.check()
    for name in features:
        del vars(compat.FEATURES[name])["usable"]
    assert len(features) == len(caplog.records)
    for lost in ("failover", "time-outs", "JSON", "request bodies", "streaming", "pooled connections", "WebSocket", "refusals", "SIGTERM"):
        assert lost in caplog.text


@pytest.mark.parametrize("name", compat.FEATURES)
def test_the_page_lists_what_is_used(name: str) -> None:
    """For each feature docs/mitmproxy-internals.md names the loss, and every object of its table."""
    page = (ROOT / "docs" / "mitmproxy-internals.md").read_text()
    section = page.partition(f"(`{name}`)\n")[2].partition("\n#")[0]
    objects = re.findall(r"`(\w+)`", section.partition("Objects: ")[2])
    feature = compat.FEATURES[name]
    assert list(feature.uses) == objects
    assert feature.lost in section
