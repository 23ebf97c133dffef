"""Shows the comment of each flow below its row in the console's list. By default only the detail view shows it.

The list's walker creates the rows, so its class is replaced. On a mitmproxy with other internals the list is unchanged.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import urwid  # type: ignore[import-untyped]
from mitmproxy.tools.console import flowlist

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy.flow import Flow
    from mitmproxy.master import Master

__all__ = ["comments"]

_INDENT = 11  # columns of the time in mitmproxy's rows


class Row(flowlist.FlowItem):
    def __init__(self, master: Master, flow: Flow, one_line: Callable[[str], str]) -> None:
        self._one_line = one_line
        super().__init__(master, flow)  # type: ignore[no-untyped-call]

    def get_text(self) -> urwid.Widget:
        row: urwid.Widget = super().get_text()  # type: ignore[no-untyped-call]
        if not self.flow.comment:
            return row
        return urwid.Pile([row, urwid.Padding(urwid.Text(("text", self._one_line(self.flow.comment)), wrap="ellipsis"), left=_INDENT)])


class Walker(flowlist.FlowListWalker):
    """mitmproxy's walker, with rows that show comments."""

    one_line: Callable[[str], str]

    def get_focus(self) -> tuple[Row | None, int | None]:
        focus = self.master.view.focus
        return (self._row(focus.flow), focus.index) if focus.flow else (None, 0)

    @cache  # noqa: B019 - mitmproxy clears the cache
    def _get(self, pos: int) -> tuple[Row | None, int | None]:
        return (self._row(self.master.view[pos]), pos) if self.master.view.inbounds(pos) else (None, None)

    def _row(self, flow: Flow) -> Row:
        return Row(self.master, flow, self.one_line)


def comments(master: Master, one_line: Callable[[str], str], *, shown: bool) -> None:
    """Show comments in the list of this console, or hide them."""
    window: Any = master.window  # type: ignore[attr-defined]
    for stack in window.stacks:
        walker = stack.windows["flowlist"].body
        walker.one_line = one_line
        walker.__class__ = Walker if shown else flowlist.FlowListWalker
        walker.view_changed()
