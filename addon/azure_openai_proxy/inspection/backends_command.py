"""The command `azure.backends` (in mitmweb's command bar, or after `:` in the console): the state of the backends."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - mitmproxy reads the annotations of commands
from typing import TYPE_CHECKING

from mitmproxy import command

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_openai_proxy.routing.attempts import Shared
    from azure_openai_proxy.routing.pool import View

__all__ = ["BackendsCommand"]


class BackendsCommand:
    name = "azure_openai_backends"

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    @command.command("azure.backends")
    def backends(self) -> Sequence[str]:
        """Each backend: its state, requests in flight, the rest of its cool-down, and the repairs learned for its deployments."""
        return [quoting.line(line) for view in self._shared.pool.views() for line in self._lines(view)]

    def _lines(self, view: View) -> Iterator[str]:
        backend = view.backend
        parts = [view.state, f"{view.in_flight} in flight", f"priority {backend.priority}", f"weight {backend.weight}"]
        if view.cooling:
            parts.append(f"{view.cooling:.1f} s of its cool-down left")
        if view.first_byte is not None:
            parts.append(f"first byte after {view.first_byte:.2f} s")
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
