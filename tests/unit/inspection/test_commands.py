"""The mitmproxy commands. The end-to-end tests cover a real response of another deployment."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import exceptions, http
from mitmproxy.addons import view
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config import settings
from azure_openai_proxy.inspection import commands, request_replay
from azure_openai_proxy.inspection.commands import Commands
from azure_openai_proxy.routing.learned_repairs import Key
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.repair_changes import Drop
from azure_openai_proxy.routing.state import Shared

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKEND = Backend(name="a", base=Base("https", "r.openai.azure.com", 443), token="k-0123", apiversion="v1")
A, B, C = (Backend(name=name, base=Base("https", f"{name}.example", 443), apiversion="v1", token="sesame") for name in "abc")
ENTRA = Backend(name="d", base=Base("https", "d.example", 443), apiversion="v1", entra="cli", weight=2)
SETTINGS = settings.Settings(backends=(BACKEND,), mapper=Mapper.parse("gpt-4o=prod"))


def ours(path: str = "/openai/v1/chat/completions") -> http.HTTPFlow:
    flow = tflow.tflow(
        req=http.Request.make("POST", f"https://r.openai.azure.com{path}", b'{"model":"prod"}', http.Headers(api_key="[key]"))
    )
    flow.metadata = {"azure_openai_operation": "POST /v1/chat/completions", "azure_openai_deployment": "prod"}
    flow.comment, flow.marked = "the first", ":star:"
    return flow


@pytest.fixture
def context() -> Iterator[taddons.context]:
    with taddons.context(Commands(lambda: SETTINGS, Shared(Pool())), view.View()) as context:
        yield context


def call(context: taddons.context, name: str, *arguments: object) -> Any:
    return context.master.commands.call(name, *arguments)


def test_they_complete_and_explain_themselves(context: taddons.context) -> None:
    """Each command has a help text and a name that mitmweb accepts."""
    known = {name: command for name, command in context.master.commands.commands.items() if name.startswith("azure.")}
    assert {"azure.explain", "azure.export", "azure.export.formats", "azure.models", "azure.resend"} <= set(known)
    assert all(command.help for command in known.values())
    assert ["curl", "httpx", "openai"] == call(context, "azure.export.formats")


def test_several_flows(context: taddons.context) -> None:
    """Several flows are explained one after the other."""
    told = call(context, "azure.explain", [ours(), tflow.ttcpflow(), ours()])
    assert 2 == told.count("POST /v1/chat/completions\n")


def test_models(context: taddons.context) -> None:
    """The models are listed with their deployments."""
    assert ["gpt-4o → prod"] == call(context, "azure.models")


def test_an_export_has_the_key_only_on_request(context: taddons.context) -> None:
    """An export contains the key only on request, otherwise the name of an environment variable."""
    assert "$AZURE_OPENAI_API_KEY" in call(context, "azure.export", "curl", [ours()])
    assert "k-0123" in call(context, "azure.export", "httpx", [ours()], True)


def test_of_several_flows_each_is_exported_that_can_be(context: taddons.context) -> None:
    """If a flow cannot be exported, the reason takes its place and the other flows are exported."""
    told = call(context, "azure.export", "openai", [ours("/nothing"), ours()])
    assert "# POST /nothing cannot be exported in this format: /nothing is not a path of Azure OpenAI\n\nimport os" in told


def test_command_errors(context: taddons.context) -> None:
    """A command that cannot run raises CommandError, as mitmproxy's own commands do."""
    with pytest.raises(exceptions.CommandError, match="cannot be exported in this format: /nothing is not"):
        call(context, "azure.export", "openai", [ours("/nothing")])
    with pytest.raises(exceptions.CommandError, match="Choose HTTP flows"):
        call(context, "azure.explain", [tflow.ttcpflow()])
    with pytest.raises(exceptions.CommandError, match="None of these requests"):
        call(context, "azure.resend", [tflow.tflow()], "other")
    with (
        taddons.context(Commands(settings.Settings, Shared(Pool()))) as other,
        pytest.raises(exceptions.CommandError, match="No key is configured"),
    ):
        call(other, "azure.export", "curl", [ours()], True)


@pytest.mark.parametrize("listed", [True, False], ids=["mitmweb", "mitmdump"])
async def test_a_copy_asks_another_deployment(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow is unchanged, its copy contains nothing of the first response, and both responses are compared."""
    ended = asyncio.Event()

    class Replayed:
        def __init__(self, flow: http.HTTPFlow, _: object) -> None:
            self.flow = flow

        async def replay(self) -> None:
            asked = (self.flow.is_replay, self.flow.response, self.flow.comment, self.flow.marked, self.flow.metadata)
            assert ("request", None, "", "", {"azure_openai_deployment": "prod", request_replay.RESEND: "other"}) == asked
            self.flow.response = http.Response.make(200, b'{"choices":[{"message":{"content":"hello"}}]}')
            ended.set()

    monkeypatch.setattr(commands, "ReplayHandler", Replayed)
    first = ours()
    first.response, first.live = http.Response.make(200, b"{}"), False
    added = Commands(lambda: SETTINGS, Shared(Pool()))
    shown = view.View()
    with taddons.context(added, *([shown] if listed else [])):
        assert "Requests sent to other: 1." == added.resend([first], "other")
        tasks = list(added._running)
        await ended.wait()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
    assert "the first" == first.comment
    assert [listed] == [len(shown) == 1]
    assert set() == added._running


def test_how_the_backends_are() -> None:
    """The command shows state, requests in flight, the rest of each cool-down and the learned repairs, but no key."""
    now = [0.0]
    shared = Shared(Pool(lambda: now[0], random.Random(1)))
    shared.pool.update((A, B, C, ENTRA))
    ticket = shared.pool.begin(A, "gpt-4o", reason="weight")
    now[0] = 0.25
    shared.pool.succeeded(ticket, {})
    shared.pool.rate_limited(shared.pool.begin(B, "gpt-4o"), 10)
    shared.pool.rate_limited(shared.pool.begin(B, ""), 5)
    shared.pool.deployment_missing(shared.pool.begin(B, "o1"), 30)
    shared.pool.failed(shared.pool.begin(C, "gpt-4o"), 7)
    shared.pool.unreachable(shared.pool.begin(ENTRA, "gpt-4o"))
    shared.learned.add(Key("a", "o1", "/chat/completions", "dated 2024-10-21"), [Drop("user"), Drop("seed")])
    with taddons.context() as context:
        context.master.addons.add(Commands(lambda: SETTINGS, shared))
        lines = context.master.commands.execute("azure.backends")
    assert [
        "a https://a.example: healthy, 1 in flight, priority 0, weight 1, first byte after 0.25 s, last request: weight",
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
