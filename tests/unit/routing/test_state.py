"""The state that all requests share."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing import learned_repairs, repair_changes
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.state import Shared

A, B = (Backend(name=name, base=Base("https", name, 443), token="key", apiversion="v1") for name in "ab")


def shared() -> Shared:
    return Shared(Pool(lambda: 0.0, random.Random(1)))


def test_unusable_while_all_backends_cool_down() -> None:
    """The proxy is unusable only if it has backends and all of them are in their cool-down."""
    of = shared()
    assert of.unusable() is None
    of.use((A, B))
    of.pool.unreachable(of.pool.begin(A, "gpt-4o"))
    of.pool.failed(of.pool.begin(B, "gpt-4o"), 86400)
    assert of.unusable() is None
    of.pool.unreachable(of.pool.begin(B, "gpt-4o"))
    assert "no backend is usable now" == of.unusable()


def test_new_backends_clear_learned_repairs() -> None:
    """Repairs are kept while the backends stay the same, and cleared when they change."""
    of, key = shared(), learned_repairs.Key("a", "gpt-4o", "/v1/chat/completions", "", b"")
    of.use((A, B))
    of.learned.add(key, [repair_changes.Drop("user")])
    of.use((A, B))
    kept = [*of.learned.get(key)]
    of.use((A,))
    assert ([repair_changes.Drop("user")], []) == (kept, [*of.learned.get(key)])
    assert ["a"] == [view.backend.name for view in of.pool.views()]


def test_a_backend_needs_a_token_of_entra_id_only_if_it_uses_entra_id() -> None:
    """A backend with a key always has its credential; one with Entra ID has it once there is a token."""
    of, tokens = shared(), dict[str, str]()
    of.tokens = cast("Any", SimpleNamespace(token=lambda backend: tokens.get(backend.name)))
    entra = replace(A, token="", entra="cli")
    before = of.has_token(entra)
    tokens["a"] = "token"
    assert (True, False, True) == (of.has_token(B), before, of.has_token(entra))
