"""Shows the comment of each flow below its row in the console's list. By default only the detail view shows it.

The list makes its rows of the class `FlowItem`, which is replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import urwid  # type: ignore[import-untyped]
from mitmproxy.tools.console import flowlist

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy.master import Master

__all__ = ["comments"]

_INDENT = 11  # columns of the time in mitmproxy's rows
_ROW = flowlist.FlowItem


class Row(_ROW):
    one_line: ClassVar[Callable[[str], str]]

    def get_text(self) -> urwid.Widget:
        row: urwid.Widget = super().get_text()  # type: ignore[no-untyped-call]
        if not self.flow.comment:
            return row
        return urwid.Pile([row, urwid.Padding(urwid.Text(("text", type(self).one_line(self.flow.comment)), wrap="ellipsis"), left=_INDENT)])


def comments(master: Master, one_line: Callable[[str], str], *, shown: bool) -> None:
    """Show comments in the list of this console, or hide them."""
    Row.one_line = staticmethod(one_line)
    vars(flowlist)["FlowItem"] = Row if shown else _ROW
    window: Any = master.window  # type: ignore[attr-defined]
    for stack in window.stacks:
        stack.windows["flowlist"].body.view_changed()
