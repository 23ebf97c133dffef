"""The command that shows the state of the backends."""

from __future__ import annotations

import random

from mitmproxy.test import taddons

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.inspection.backends_command import BackendsCommand
from azure_openai_proxy.routing.attempts import Shared
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.repair import Drop, Key

A, B, C = (Backend(name=name, base=Base("https", f"{name}.example", 443), apiversion="v1", token="sesame") for name in "abc")
ENTRA = Backend(name="d", base=Base("https", "d.example", 443), apiversion="v1", entra="cli", weight=2)


def test_how_the_backends_are() -> None:
    """The command shows state, requests in flight, the rest of each cool-down and the learned repairs, but no key."""
    now = [0.0]
    shared = Shared(Pool(lambda: now[0], random.Random(1)))
    shared.pool.update((A, B, C, ENTRA))
    ticket = shared.pool.begin(A, "gpt-4o")
    now[0] = 0.25
    shared.pool.answers(ticket, {})
    shared.pool.refused(shared.pool.begin(B, "gpt-4o"), 10)
    shared.pool.refused(shared.pool.begin(B, ""), 5)
    shared.pool.missed(shared.pool.begin(B, "o1"), 30)
    shared.pool.failed(shared.pool.begin(C, "gpt-4o"), 7)
    shared.pool.unreachable(shared.pool.begin(ENTRA, "gpt-4o"))
    shared.learned.add(Key("a", "o1", "/chat/completions", "dated 2024-10-21"), [Drop("user"), Drop("seed")])
    with taddons.context() as context:
        context.master.addons.add(BackendsCommand(shared))
        lines = context.master.commands.execute("azure.backends")
    assert [
        "a https://a.example: healthy, 1 in flight, priority 0, weight 1, first byte after 0.25 s",
        "  o1 /chat/completions dated 2024-10-21: user left out, seed left out",
        "b https://b.example: healthy, 0 in flight, priority 0, weight 1",
        "  gpt-4o: rate-limited for 10.0 s",
        "  requests without a deployment: rate-limited for 5.0 s",
        "  o1: not found; other backends are preferred for 30.0 s",
        "c https://c.example: healthy, 0 in flight, priority 0, weight 1",
        "  gpt-4o: cooling down after a failure for 7.0 s",
        (
            "d https://d.example: cooling, 0 in flight, priority 0, weight 2, "
            f"{shared.pool.views()[3].cooling:.1f} s of its cool-down left, no token"
        ),
    ] == lines
