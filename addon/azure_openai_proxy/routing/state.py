"""State that requests share: backends and their health, owners of resources, learned repairs, tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import affinity, learned_repairs
from .entra_tokens import Tokens
from .sessions import Sessions
from .usage_refusals import UsageRefusals

if TYPE_CHECKING:
    from azure_openai_proxy.api.backend import Backend

    from .pool import Pool

__all__ = ["Shared"]


@dataclass(slots=True)
class Shared:
    """State that all requests share."""

    pool: Pool
    owners: affinity.Owners = field(default_factory=affinity.Owners)
    sessions: Sessions = field(default_factory=Sessions)
    learned: learned_repairs.Learned = field(default_factory=learned_repairs.Learned)
    usage_refusals: UsageRefusals = field(default_factory=UsageRefusals)
    tokens: Tokens = field(default_factory=Tokens)  # of Entra ID
    backends: tuple[Backend, ...] = ()

    def use(self, backends: tuple[Backend, ...]) -> None:
        """Set the backends of the current settings. A change clears the learned repairs and refusals."""
        if backends != self.backends:
            self.backends = backends
            self.pool.update(backends)
            self.learned.clear()
            self.usage_refusals.clear()
            self.tokens.use(backends)

    def unusable(self) -> str | None:
        """Why the proxy is not ready; None if at least one backend is not in its cool-down."""
        views = self.pool.views()
        return "no backend is usable now" if views and all(view.state == "cooling" for view in views) else None

    def has_token(self, backend: Backend) -> bool:
        return not backend.entra or self.tokens.token(backend) is not None
