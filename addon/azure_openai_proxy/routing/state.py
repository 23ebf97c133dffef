"""State that requests share: backends and their health, owners of resources, learned repairs, tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import affinity, repair
from .entra_tokens import Tokens

if TYPE_CHECKING:
    from azure_openai_proxy.api.backend import Backend

    from .pool import Pool

__all__ = ["Shared"]


@dataclass(slots=True)
class Shared:
    """State that all requests share."""

    pool: Pool
    owners: affinity.Owners = field(default_factory=affinity.Owners)
    learned: repair.Learned = field(default_factory=repair.Learned)
    tokens: Tokens = field(default_factory=Tokens)  # of Entra ID
    backends: tuple[Backend, ...] = ()

    def use(self, backends: tuple[Backend, ...]) -> None:
        """Set the backends of the current settings. A change clears the learned repairs."""
        if backends != self.backends:
            self.backends = backends
            self.pool.update(backends)
            self.learned.clear()
            self.tokens.use(backends)

    def unusable(self) -> str | None:
        """Why the proxy is not ready; None if at least one backend is not in its cool-down."""
        views = self.pool.views()
        return "no backend is usable now" if views and all(view.state == "cooling" for view in views) else None

    def has_token(self, backend: Backend) -> bool:
        return not backend.entra or self.tokens.token(backend) is not None
