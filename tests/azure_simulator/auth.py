"""Who may ask: the resource's key in `api-key`, an Entra token as Bearer, and on v1 the key as Bearer too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from . import errors

if TYPE_CHECKING:
    from collections.abc import Collection

    from .received import Received

__all__ = ["check"]


def check(received: Received, form: Literal["dated", "v1"] | None, key: str, entra_tokens: Collection[str]) -> None:
    """Raise Azure's 401. An `api-key` header decides alone; a repeated one is wrong with any value."""
    given = received.header("api-key")
    if given is not None:
        allowed = given == key
    else:
        scheme, _, token = (received.header("authorization") or "").partition(" ")
        allowed = scheme.lower() == "bearer" and (token in entra_tokens or (form == "v1" and token == key))
    if not allowed:
        raise errors.no_access()
