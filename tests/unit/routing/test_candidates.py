"""The backends that may serve one request. The choice among them is tested in `test_choosing.py`, with the attempts that follow from it."""

from __future__ import annotations

import random

from mitmproxy import http

from azure_openai_proxy.api import operation
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.routing.candidates import Candidates
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.state import Shared

BACKENDS = tuple(Backend(name=name, base=Base("https", name, 443), apiversion="v1", priority=index) for index, name in enumerate("ab"))


def candidates(content: bytes = b'{"model":"GPT-4o"}', key: str = "") -> Candidates:
    shared = Shared(Pool(lambda: 0.0, random.Random(1)))
    shared.use(BACKENDS)
    call = operation.recognise("POST", "/v1/chat/completions", {"content-type": "application/json"}, content)
    assert call
    return Candidates(Settings(backends=BACKENDS), shared, call, ClientRequest(http.Headers(), Query("", "", key), content))


def test_backends_are_chosen_in_turn() -> None:
    """Those that are not used again are left out, and so are those of the caller."""
    found = candidates()
    first, _ = found.first()
    assert BACKENDS[0] is first
    found.dead |= {"a"}
    assert (second := found.choose())
    assert BACKENDS[1] is second.backend
    assert found.choose({"a", "b"}) is None
    assert found.choose_without_tier() is None


def test_the_size_of_a_request() -> None:
    """A quarter of its bytes, and the tokens that it may generate in each of its answers. It is computed once."""
    content = b'{"model":"gpt-4o","max_completion_tokens":100,"n":3}'
    found = candidates(content)
    assert len(content) // 4 + 300 == found.tokens() == found.tokens()


def test_the_pools_keys() -> None:
    """Deployments are compared without regard to case, a tier has its own entry, and clients with keys of their own have a scope."""
    found = candidates(key="k")
    assert "gpt-4o" == found.entry(BACKENDS[0])
    found.tier = "flex"
    assert "gpt-4o (flex)" == found.entry(BACKENDS[0])
    assert candidates(key="k").key_scope(*BACKENDS) == found.key_scope(*BACKENDS) != candidates(key="other").key_scope(*BACKENDS)


def test_nothing_waits_before_the_choice() -> None:
    """There are no candidates yet."""
    assert candidates().wait() is None
