"""The console's list. tests/e2e/test_console.py reads it off a screen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import ctx
from mitmproxy.addons.view import View
from mitmproxy.test import taddons, tflow
from mitmproxy.tools.console.flowlist import FlowListBox

from azure_openai_proxy.formats import quoting
from azure_openai_proxy.mitmproxy_patches import compat, install

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = 120


def style() -> Any:
    raise NotImplementedError  # mitmweb's


class ConsoleMaster(SimpleNamespace):
    """A master of the console without a terminal."""

    __module__ = "mitmproxy.tools.console.master"


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A console that is not on a terminal, with two flows; one has a comment."""
    with taddons.context(View()) as context:
        view = context.master.addons.get("view")
        options = SimpleNamespace(console_flowlist_layout="default", showhost=False, subscribe=lambda *_: None)
        master = ConsoleMaster(view=view, options=options, ui=SimpleNamespace(get_cols_rows=lambda: (COLUMNS, 40)))
        flows = [tflow.tflow(), tflow.tflow()]
        flows[1].comment = "gpt-4o → prod · 200+3 tokens" + " and more" * 20
        flows[1].request.timestamp_start += 1
        view.add(flows)
        master.window = SimpleNamespace(stacks=[SimpleNamespace(windows={"flowlist": FlowListBox(master)})])  # type: ignore[arg-type]
        monkeypatch.setattr(ctx, "master", master)
        vars(compat.CONSOLE).pop("usable", None)
        yield master
        vars(compat.CONSOLE).pop("usable", None)


def rows(master: Any) -> list[str]:
    """The whole list as text, whichever flow is in focus."""
    walker = master.window.stacks[0].windows["flowlist"].body
    item, at = walker.get_focus()
    found = []
    while item is not None:
        found += [line.decode() for line in item.render((COLUMNS,)).text]
        item, at = walker.get_next(at)
    return found


def test_a_comment_stands_below_its_flow(master: Any) -> None:
    """In one line, cut where the screen ends; a flow without one has none. Afterwards the list is mitmproxy's again."""
    plain = rows(master)
    install.show_comments(master, quoting.line, style, shown=True)
    told = rows(master)
    assert (plain, 1) == ([told[0], told[1]], len(told) - len(plain))
    assert told[2].startswith(" " * 11 + "gpt-4o → prod · 200+3 tokens and more")
    assert (COLUMNS, "…") == (len(told[2]), told[2][-1])
    master.view.focus.index = 1
    assert told[1].removeprefix("  ") == rows(master)[0].removeprefix(">>")
    install.show_comments(master, quoting.line, style, shown=False)
    master.view.focus.index = 0
    assert plain == rows(master)


def test_a_console_that_has_no_window_yet(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    """While the script loads nothing is shown and nothing is decided: the console gets its comments when it runs."""
    window, master.window = master.window, None
    install.show_comments(master, quoting.line, style, shown=True)
    master.window = window
    plain = rows(master)
    install.show_comments(master, quoting.line, style, shown=True)
    assert len(plain) < len(rows(master))
    assert [] == caplog.messages


def test_an_empty_list(master: Any) -> None:
    """Has no rows."""
    install.show_comments(master, quoting.line, style, shown=True)
    master.view.clear()
    assert [] == rows(master)


@pytest.mark.parametrize("other", [SimpleNamespace(), ConsoleMaster(window=None), ConsoleMaster(window=SimpleNamespace(stacks=[1]))])
def test_other_tools_are_left_alone(other: Any, master: Any) -> None:
    """A master without a list in a terminal, and a console with other internals, stay as they are."""
    ctx.master, before = other, repr(other)
    install.show_comments(other, quoting.line, style, shown=True)
    assert before == repr(other)
    ctx.master = master


def test_a_renamed_attribute_of_the_console_is_a_warning(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If the console's window has another name, one warning names it and the loss, also after a second call."""
    del master.window
    install.show_comments(master, quoting.line, style, shown=True)
    install.show_comments(master, quoting.line, style, shown=False)
    (line,) = caplog.messages
    assert "attribute window" in line.replace("'", "")
    assert line.endswith(compat.CONSOLE.lost)
