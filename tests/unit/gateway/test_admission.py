"""Requests of clients: their keys, limits and budgets, from the hooks to the responses."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import ctx, http
from mitmproxy.flow import Error
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.accounting.budgets import TOTAL
from azure_openai_proxy.accounting.limits import LocalLimits, Unavailable
from azure_openai_proxy.api.backend import Backend, parse_endpoint
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config import origins
from azure_openai_proxy.config.clients import Budget, Client, ClientKey, Group, Limits, digest
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.formats.json_scan import LARGE
from azure_openai_proxy.gateway.admission import Admission
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.gateway.socket_admission import MOST
from azure_openai_proxy.inspection import flow_metadata
from support.flows import gateways, status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from azure_openai_proxy.accounting.budgets import BudgetState
    from azure_openai_proxy.accounting.limits import Claim, Outcome
    from azure_openai_proxy.addon import AzureOpenAIProxy

BACKENDS = tuple(
    Backend(name=name, base=parse_endpoint(f"https://{name}.openai.azure.com")[0], token=f"azure-key-{name}", apiversion="v1")
    for name in ("east", "west")
)
PAST = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "12345678"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def client(name: str = "alice", **members: Any) -> Client:
    return Client(name=name, keys=(ClientKey(digest(f"sk-{name}")),), **members)


def use(addon: AzureOpenAIProxy, *clients: Client, groups: Sequence[Group] = (), **members: Any) -> None:
    mapper = Mapper.parse("gpt-4o=gpt-4o,gpt-4.1=gpt-4.1")
    addon.runtime.settings = Settings(backends=BACKENDS, clients=clients, groups=tuple(groups), mapper=mapper, **members)


def asking(
    method: str = "POST", path: str = "/v1/chat/completions", body: object = CHAT, key: str = "sk-alice", **headers: str
) -> http.HTTPFlow:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gateways(method, path, content, **({"authorization": f"Bearer {key}"} | headers))


async def ask(addon: AzureOpenAIProxy, flow: http.HTTPFlow) -> http.HTTPFlow:
    """Pass the hooks of a request, and of an early response."""
    if waiting := addon.requestheaders(flow):
        await waiting
    if early := addon.registry.early_response(flow):
        flow.response = early
    elif waiting := addon.request(flow):
        await waiting
    if flow.response:
        addon.responseheaders(flow)
        if waiting := addon.response(flow):
            await waiting
    return flow


async def answer(addon: AzureOpenAIProxy, flow: http.HTTPFlow, code: int = 200, **members: Any) -> http.HTTPFlow:
    """Let Azure answer."""
    headers = {"content-type": "application/json", "x-ratelimit-remaining-tokens": "7"}
    flow.response = http.Response.make(code, json.dumps({"model": "gpt-4o"} | members), headers)
    addon.responseheaders(flow)
    if waiting := addon.response(flow):
        await waiting
    return flow


def code(flow: http.HTTPFlow) -> Any:
    assert flow.response
    return json.loads(flow.response.content or b"")["error"]["code"]


def message(flow: http.HTTPFlow) -> str:
    assert flow.response
    return str(json.loads(flow.response.content or b"")["error"]["message"])


async def page(addon: AzureOpenAIProxy, path: str = "/azure-openai-proxy/key", **options: Any) -> dict[str, Any]:
    flow = await ask(addon, asking("GET", path, b"", **options))
    assert flow.response
    found: dict[str, Any] = json.loads(flow.response.content or b"")
    return found


class Slow:
    """Counters that others share: the outcome is an awaitable."""

    def __init__(self, fixed: Outcome | None = None) -> None:
        self.local = LocalLimits()
        self.fixed = fixed
        self.settle, self.look = self.local.settle, self.local.look

    async def reserve(self, claims: Sequence[Claim]) -> Outcome:
        await asyncio.sleep(0)
        return self.fixed or self.local.reserve(claims)


# Keys


@pytest.mark.parametrize(
    ("key", "reason"),
    [("sk-unknown", "does not know it"), ("sk-disabled", "is disabled"), ("sk-expired", "2020-01-01T00:00:00Z"), ("sk-rotated", "expired")],
)
async def test_a_key_that_does_not_work(addon: AzureOpenAIProxy, key: str, reason: str) -> None:
    """It gets a 401 with the reason, and the request stays here."""
    rotated = Client(name="rotated", keys=(ClientKey(digest("sk-rotated"), PAST), ClientKey(digest("sk-new"))))
    use(addon, client("disabled", disabled=True), client("expired", expires=PAST), rotated)
    flow = await ask(addon, asking(key=key))
    assert (401, "invalid_api_key") == (status(flow), code(flow))
    assert reason in message(flow)
    assert None is (await ask(addon, asking(key="sk-new"))).response


async def test_a_request_without_a_key(addon: AzureOpenAIProxy) -> None:
    """It is refused, or with `optional` served with no client; pages of the proxy need no key, the page of a key does."""
    use(addon, client())
    assert 401 == status(await ask(addon, asking(key="")))
    assert 200 == status(await ask(addon, asking("GET", "/healthz", b"", key="")))
    use(addon, client(), client_auth="optional")
    flow = await ask(addon, asking(key=""))
    assert addon.registry.request_with_keys(flow).headers["api-key"].startswith("azure-key-")  # type: ignore[union-attr]
    assert 401 == status(await ask(addon, asking("GET", "/azure-openai-proxy/key", b"", key="")))
    assert 404 == status(await ask(addon, asking("POST", "/azure-openai-proxy/key", b"")))
    use(addon, client_auth="off")
    assert 404 == status(await ask(addon, asking("GET", "/azure-openai-proxy/key", b"")))


async def test_the_key_stays_here(addon: AzureOpenAIProxy) -> None:
    """Azure gets the proxy's key, and the client's in no other header and not in the query."""
    use(addon, client("a-long-name"))
    key = "sk-a-long-name"
    flow = await ask(addon, asking(key=key, path=f"/v1/chat/completions?token={key}&user=me", **{"x-api-key": key, "x-a": "b"}))
    sent = addon.registry.request_with_keys(flow)
    assert isinstance(sent, http.Request)
    assert ("azure-key-", "b") == (sent.headers["api-key"][:10], sent.headers["x-a"])
    assert key not in repr(sent.headers) + sent.path
    assert sent.path.endswith("?user=me")
    only = await ask(addon, asking(key=key, path=f"/v1/chat/completions?token={key}"))
    assert addon.registry.request_with_keys(only).path.endswith("/chat/completions")  # type: ignore[union-attr]


async def test_backends_without_a_key(addon: AzureOpenAIProxy) -> None:
    """The key of a client is not taken for Azure's."""
    use(addon, client())
    addon.runtime.settings = replace(addon.runtime.settings, backends=(replace(BACKENDS[0], token=""),))
    assert 401 == status(await ask(addon, asking()))
    addon.runtime.settings = replace(addon.runtime.settings, client_auth="optional")
    assert 401 == status(await ask(addon, asking(key="")))


async def test_openai_mode(addon: AzureOpenAIProxy) -> None:
    """Once a key is required nothing is forwarded unchanged, because the key of the client would be."""
    use(addon, client())
    addon.teams.use(addon.settings)
    addon.runtime.settings = Settings(mode="openai")
    assert 503 == status(await ask(addon, asking()))


async def test_before_the_ledger_was_read(addon: AzureOpenAIProxy) -> None:
    """Only keys of the file without a budget work."""
    use(
        addon, client(), client("rich", budget=Budget(1.0)), client("member", group="team"), groups=[Group(name="team", budget=Budget(1.0))]
    )
    addon.teams.use(addon.settings)
    addon.teams.directory.use_managed([client("managed")])
    addon.teams.directory.waiting = "azure_openai_ledger was not read yet."
    assert None is (await ask(addon, asking())).response
    for key in ("sk-rich", "sk-member", "sk-managed", "sk-unknown", ""):
        flow = await ask(addon, asking(key=key))
        assert (503, "azure_openai_ledger was not read yet.") == (status(flow), message(flow))


async def test_pages_bring_their_own_key(addon: AzureOpenAIProxy) -> None:
    """All origins may send requests while a key is required, and read the 401; a list that is set still holds."""
    rule = origins.allowed((), frozenset(), keyed=True)
    use(addon, client(), origins=rule)
    flow = await ask(addon, asking(key="", origin="https://page.example"))
    assert (401, "https://page.example") == (status(flow), flow.response and flow.response.headers["access-control-allow-origin"])
    use(addon, client(), origins=rule, client_auth="optional")
    assert 403 == status(await ask(addon, asking(origin="https://page.example")))
    use(addon, client(), origins=origins.allowed(origins.parse(["https://other.example"]), frozenset(), keyed=False))
    assert 403 == status(await ask(addon, asking(origin="https://page.example")))


# Rights


async def test_the_models_of_a_client(addon: AzureOpenAIProxy) -> None:
    """Others are refused in a body, in a session and in a streamed form, and are not listed."""
    use(addon, client(models=("gpt-4o*",)), client("any"), client("picky", models=("gpt-4o*", "o9"), backends=("west",)))
    assert ["gpt-4o"] == [model["id"] for model in (await page(addon, "/v1/models"))["data"]]
    assert ["gpt-4o", "o9"] == [model["id"] for model in (await page(addon, "/v1/models", key="sk-picky"))["data"]]
    flow = await ask(addon, asking(body=CHAT | {"model": "gpt-4.1"}))
    assert (403, "model_not_found") == (status(flow), code(flow))
    session = {"session": {"model": "gpt-4o", "audio": {"input": {"transcription": {"model": "whisper"}}}}}
    assert 403 == status(await ask(addon, asking(path="/v1/realtime/client_secrets", body=session)))
    assert None is (await ask(addon, asking(key="sk-picky"))).response
    flow = asking(path="/v1/audio/transcriptions", body=b"--x\r\n", **MULTIPART)
    addon.requestheaders(flow)
    addon.registry.start_streamed_upload(flow, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc')
    assert 403 == status(flow)
    flow = asking(path="/v1/audio/transcriptions", body=b"--x\r\n", key="sk-any", **MULTIPART)
    addon.requestheaders(flow)
    addon.registry.start_streamed_upload(flow, b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc')
    assert None is flow.response
    start = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o\r\n--x\r\n'
    flow = asking(path="/v1/audio/transcriptions", body=b"--x\r\n", **MULTIPART)
    addon.requestheaders(flow)
    addon.registry.start_streamed_upload(flow, start)
    assert None is flow.response


async def test_work_of_models_that_the_proxy_does_not_see(addon: AzureOpenAIProxy) -> None:
    """A client of some models cannot use others in a batch, whose file names them, or by a path in another case."""
    use(addon, client(models=("gpt-4o",)))
    for path in ("/v1/batches", "/v1/Images/Edits"):
        flow = await ask(addon, asking(path=path, body={"input_file_id": "f"}))
        assert (403, "unmetered_operation") == (status(flow), code(flow))
        assert "does not see the models of POST" in message(flow)
    flow = await ask(addon, asking(path="/v1/images/%65dits", body=b"--x\r\n", **MULTIPART))
    assert (403, "model_not_found") == (status(flow), code(flow))
    use(addon, client(models=("gpt-4o",), unmetered=True))
    assert not (await ask(addon, asking(path="/v1/batches", body={"input_file_id": "f"}))).response


async def test_unmetered_work(addon: AzureOpenAIProxy) -> None:
    """It needs a right of its own if tokens count."""
    use(addon, client(budget=Budget(1.0)), client("free", limits=Limits(requests_per_minute=9)))
    flow = await ask(addon, asking(path="/v1/evals/e/runs", body={}))
    assert (403, "unmetered_operation") == (status(flow), code(flow))
    assert None is (await ask(addon, asking(path="/v1/evals/e/runs", body={}, key="sk-free"))).response
    for path in ("/v1/realtime/translations?model=gpt-realtime", "/v1/live/sessions"):
        socket = await ask(addon, asking("GET", path, b"", upgrade="websocket", connection="upgrade"))
        assert (403, "unmetered_operation") == (status(socket), code(socket))


async def test_a_key_that_cannot_be_checked(
    addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the proxy's own refuses the request, also one of the counters of an upload; nothing is sent."""
    use(addon, client(limits=Limits(requests_per_minute=9)))
    monkeypatch.setattr(addon.teams.directory, "find", lambda _: 1 / 0)
    assert (500, None) == (status(flow := await ask(addon, asking())), code(flow))
    assert "could not be checked" in caplog.text
    monkeypatch.undo()

    async def fail(_: object) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    monkeypatch.setattr(Admission, "admit_upload", fail)
    monkeypatch.setattr(Exchange, "may_stream_upload", lambda *_: True)
    assert 500 == status(await ask(addon, asking(path="/v1/files", body=b"", **MULTIPART)))


# Limits


async def test_a_request_counts_once(addon: AzureOpenAIProxy) -> None:
    """Its usage replaces the estimate, and a limit that is reached names its owner."""
    use(
        addon,
        client(group="team", limits=Limits(100)),
        client("one", group="team", limits=Limits(1)),
        groups=[Group(name="team", limits=Limits(2, 1000, 1))],
    )
    assert {"limit": 1, "remaining": 1, "reset_seconds": 0} == (await page(addon, key="sk-one"))["limits"]["requests_per_minute"]
    flow = await ask(addon, asking())
    assert {"limit": 1000, "remaining": 498} == {
        name: (await page(addon))["limits"]["tokens_per_minute"][name] for name in ("limit", "remaining")
    }
    refused = await ask(addon, asking(body=CHAT | {"max_tokens": 1}))
    assert (429, "rate_limit_exceeded", True) == (status(refused), code(refused), "group team" in message(refused))
    await answer(addon, flow, usage=USAGE)
    assert flow.response
    assert ("2", "1", "1000") == tuple(
        flow.response.headers[f"x-ratelimit-{name}"] for name in ("limit-requests", "remaining-requests", "limit-tokens")
    )
    assert 993 == (await page(addon))["limits"]["tokens_per_minute"]["remaining"]
    await answer(addon, await ask(addon, asking(body=CHAT | {"max_tokens": 1})), 500)
    refused = await ask(addon, asking(body=CHAT | {"max_tokens": 1}))
    assert "requests per minute: limit 2, used 2, requested 1" in message(refused)
    assert refused.response
    assert int(refused.response.headers["retry-after"]) <= 60
    assert {("alice", "max_parallel"): 1, ("alice", "requests_per_minute"): 1} == addon.teams.refusals


async def test_an_input_beyond_the_limit(addon: AzureOpenAIProxy) -> None:
    """It is a 400 with both numbers; a request that is not sent gives all back."""
    use(addon, client(limits=Limits(tokens_per_minute=100)), client("narrow", limits=Limits(1, 1000)))
    flow = await ask(addon, asking(body=CHAT | {"messages": [{"role": "user", "content": "x" * 404}]}))
    assert (400, "tokens_limit_exceeded") == (status(flow), code(flow))
    assert "101 tokens, more than the limit of 100 tokens per minute of the client alice" in message(flow)
    addon.runtime.settings = replace(addon.settings, backends=(replace(BACKENDS[0], models=Mapper.parse("other=other")),))
    for _ in range(2):
        assert 404 == status(await ask(addon, asking(key="sk-narrow")))


async def test_usage_that_stays_unknown(addon: AzureOpenAIProxy) -> None:
    """The input counts, and the text that was delivered; nothing of a failed request."""
    use(addon, client(limits=Limits(tokens_per_minute=10_000), budget=Budget(1.0)))

    async def used() -> int:
        return 10_000 - int((await page(addon))["limits"]["tokens_per_minute"]["remaining"])

    await answer(addon, await ask(addon, asking()), choices=[{"message": {"content": "x" * 40}}])
    assert 12 == await used()
    left = await ask(addon, asking())
    left.error = Error("Client disconnected.")
    addon.error(left)
    assert 14 == await used()
    failed = await ask(addon, asking())
    failed.error = Error("no connection")
    addon.error(failed)
    assert addon.registry.error_response(Failure(502, "upstream_error", "no connection"), failed).headers["x-ratelimit-limit-tokens"]  # type: ignore[union-attr]
    await answer(addon, await ask(addon, asking("GET", "/v1/files", b"")), data=[])
    assert 14 == await used()
    assert (await page(addon))["budget"]["used_usd"] > 0


async def test_a_response_in_the_background(addon: AzureOpenAIProxy) -> None:
    """Its estimate is charged when it is created, and the difference to the real cost when its usage is seen."""
    use(addon, client(budget=Budget(1.0)))
    body = {"model": "gpt-4o", "input": "x" * 4000, "background": True}
    await answer(addon, await ask(addon, asking(path="/v1/responses", body=body)), id="resp_1", status="queued", background=True)
    assert 0.0025 == (await page(addon))["budget"]["used_usd"]
    flow = await ask(addon, asking("GET", "/v1/responses/resp_1", b""))
    usage = {"input_tokens": 2000, "output_tokens": 0}
    await answer(addon, flow, id="resp_1", status="completed", background=True, usage=usage)
    assert 0.005 == (await page(addon))["budget"]["used_usd"]


BACKGROUND: dict[str, Any] = {"model": "gpt-4o", "input": "x" * 4000, "background": True}
POLLED: dict[str, Any] = {"id": "resp_1", "status": "completed", "background": True, "usage": {"input_tokens": 200, "output_tokens": 20}}


async def used(addon: AzureOpenAIProxy, name: str) -> float:
    return float((await page(addon, key=f"sk-{name}"))["budget"]["used_usd"])


async def test_a_response_of_another_client(addon: AzureOpenAIProxy) -> None:
    """The client that has created a response or a batch pays for it, whichever client asks for it, and the ledger has the same sum."""
    use(addon, client(budget=Budget(1.0), limits=Limits(tokens_per_minute=10_000)), client("bob", budget=Budget(1.0), unmetered=True))
    records: list[Any] = []
    addon.accounts.meters._deliver = records.extend
    await answer(addon, await ask(addon, asking(path="/v1/responses", body=BACKGROUND)), id="resp_1", status="queued", background=True)
    for _ in range(2):
        await answer(addon, await ask(addon, asking("GET", "/v1/responses/resp_1", b"", key="sk-bob")), **POLLED)
    assert (0.0007, 0.0) == (await used(addon, "alice"), await used(addon, "bob"))
    assert 10_000 - 1000 == (await page(addon))["limits"]["tokens_per_minute"]["remaining"]  # the estimate, which was more
    batch: dict[str, Any] = {"id": "batch_1", "usage": {"input_tokens": 1000, "output_tokens": 0}}
    await answer(addon, await ask(addon, asking(path="/v1/batches", body={}, key="sk-bob")), id="batch_1", status="validating")
    await answer(addon, await ask(addon, asking("GET", "/v1/batches/batch_1", b"")), status="completed", **batch)
    assert (0.0007, 0.00125) == (await used(addon, "alice"), await used(addon, "bob"))
    await asyncio.sleep(0)
    charges: dict[str, float] = {}
    for record in records:
        charges[record.client] = charges.get(record.client, 0.0) + (record.cost_usd or 0.0) + (record.estimated_cost_usd or 0.0)
    assert {"alice": 0.0007, "bob": 0.00125} == {name: round(usd, 9) for name, usd in charges.items()}


async def test_the_stream_of_a_response_in_the_background(addon: AzureOpenAIProxy) -> None:
    """It is charged once: while it is created, not again when it is shown again, and not twice if the client has left its first stream."""
    use(addon, client(budget=Budget(1.0)))

    async def stream(flow: http.HTTPFlow, *types: str, id: str = "resp_1") -> None:
        flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
        addon.responseheaders(flow)
        assert callable(flow.response.stream)
        for name in types:
            response = BACKGROUND | {"id": id, "usage": None, "error": None}
            if name == "response.completed":
                response |= POLLED | {"id": id}
            event = {"type": name, "response": response}
            flow.response.stream(b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(event).encode()))
        if types[-1] == "response.completed":
            flow.response.stream(b"")
            if waiting := addon.response(flow):
                await waiting
        else:
            flow.error = Error("Client disconnected.")
            addon.error(flow)

    await stream(await ask(addon, asking(path="/v1/responses", body=BACKGROUND | {"stream": True})), "response.created")
    assert 0.0025 == await used(addon, "alice")
    for _ in range(2):
        await stream(await ask(addon, asking("GET", "/v1/responses/resp_1?stream=true", b"")), "response.created", "response.completed")
        assert 0.0007 == await used(addon, "alice")
    body = BACKGROUND | {"stream": True}
    await stream(await ask(addon, asking(path="/v1/responses", body=body)), "response.created", "response.completed", id="resp_2")
    assert 0.0014 == await used(addon, "alice")
    await answer(addon, await ask(addon, asking("GET", "/v1/responses/resp_2", b"")), **POLLED | {"id": "resp_2"})
    assert 0.0014 == await used(addon, "alice")


async def test_what_the_owner_sends_again(addon: AzureOpenAIProxy) -> None:
    """It needs no key of a client, and has none."""
    use(addon, client(limits=Limits(1)))
    flow = asking(key="")
    flow.is_replay, flow.metadata[f"{flow_metadata.PREFIX}deployment"] = "request", "gpt-4o"
    assert addon.requestheaders(flow) is None
    assert (None, None) == (addon.registry.early_response(flow), addon.registry.exchanges[flow].admission)


async def test_without_the_patched_http_layer(addon: AzureOpenAIProxy) -> None:
    """A request without a key is refused when its body was read."""
    use(addon, client())
    flow = asking(key="")
    addon.requestheaders(flow)
    addon.request(flow)
    assert 401 == status(flow)


async def test_a_stream_settles_before_its_end(addon: AzureOpenAIProxy) -> None:
    """The event with the usage settles the limit and the budget."""
    use(addon, client(limits=Limits(tokens_per_minute=10_000), budget=Budget(1.0)))
    flow = await ask(addon, asking(body=CHAT | {"stream": True}))
    flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    addon.responseheaders(flow)
    assert callable(flow.response.stream)
    flow.response.stream(b'data: {"id":"c","model":"gpt-4o","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n')
    flow.response.stream(b'data: {"id":"c","model":"gpt-4o","choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode())
    shown = await page(addon)
    assert (9993, True) == (shown["limits"]["tokens_per_minute"]["remaining"], shown["budget"]["used_usd"] > 0)
    flow.response.stream(b"data: [DONE]\n\n")
    flow.response.stream(b"")
    addon.response(flow)
    assert shown["budget"] == (await page(addon))["budget"]


async def test_a_key_as_the_name_of_a_model(addon: AzureOpenAIProxy, caplog: pytest.LogCaptureFixture) -> None:
    """A client that mistakes one variable for another has its key in no line of the log, neither while the stream runs nor after it."""
    use(addon, client(limits=Limits(tokens_per_minute=10_000)))
    addon.runtime.settings = dataclasses.replace(addon.settings, mapper=Mapper.parse("*=unpriced"))
    flow = await ask(addon, asking(body=CHAT | {"model": "sk-alice", "stream": True}))
    flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    addon.responseheaders(flow)
    assert callable(flow.response.stream)
    flow.response.stream(b'data: {"id":"c","model":"unpriced","choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode())
    flow.response.stream(b"data: [DONE]\n\n")
    flow.response.stream(b"")
    addon.response(flow)
    assert "No price for" in caplog.text
    assert "sk-alice" not in caplog.text


async def test_counters_that_others_share(addon: AzureOpenAIProxy) -> None:
    """Requests, large bodies, compressed bodies and uploads wait for them, and are refused by them."""
    use(addon, client(limits=Limits(9, max_parallel=3)), client("upload", limits=Limits(1)))
    addon.teams.limits = Slow()
    large = CHAT | {"messages": [{"role": "user", "content": "x" * LARGE}]}
    for flow in (asking(), asking(body=large), asking(**{"content-encoding": "identity"})):
        assert None is (await ask(addon, flow)).response
    assert 429 == status(await ask(addon, asking()))
    upload = asking(path="/v1/files", body=b"--x\r\n", key="sk-upload", **MULTIPART)
    assert None is (await ask(addon, upload)).response
    assert 429 == status(await ask(addon, asking(path="/v1/files", body=b"--x\r\n", key="sk-upload", **MULTIPART)))
    addon.started.clear()
    waiting = addon.requestheaders(asking(path="/v1/files", body=b"--x\r\n", key="sk-upload", **MULTIPART))
    addon.started.set()
    assert waiting
    await waiting
    addon.teams.limits = Slow(Unavailable("no counters"))
    flow = await ask(addon, asking())
    assert (503, "no counters") == (status(flow), message(flow))


async def test_a_large_upload_is_admitted_before_its_body(addon: AzureOpenAIProxy) -> None:
    """Its place is taken when its head was read."""
    use(addon, client(limits=Limits(9, 10_000, 1), budget=Budget(1.0)))
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o\r\n--x--\r\n'
    flow = asking(path="/v1/audio/transcriptions", body=form, **MULTIPART)
    addon.requestheaders(flow)
    refused = asking(path="/v1/audio/transcriptions", body=form, **MULTIPART)
    addon.requestheaders(refused)
    early = addon.registry.early_response(refused)
    assert early
    assert 429 == early.status_code
    addon.request(flow)
    await answer(addon, flow, text="Hello")
    assert {"limit": 1, "remaining": 1} == (await page(addon))["limits"]["max_parallel"]


# Budgets


async def test_a_budget(addon: AzureOpenAIProxy) -> None:
    """The crossing request completes, and the next one is refused until the budget is renewed."""
    use(addon, client(budget=Budget(0.000001, "day")), client("once", budget=Budget(0.0, "total")))
    await answer(addon, await ask(addon, asking()), usage=USAGE)
    flow = await ask(addon, asking())
    assert (429, "insufficient_quota", True) == (status(flow), code(flow), "It is renewed at" in message(flow))
    assert flow.response
    assert ("false", True) == (flow.response.headers["x-should-retry"], "retry-after" in flow.response.headers)
    gone = await ask(addon, asking(key="sk-once"))
    assert gone.response
    assert (True, False) == ("It is not renewed" in message(gone), "retry-after" in gone.response.headers)


async def test_a_budget_that_other_replicas_spent(addon: AzureOpenAIProxy) -> None:
    """A request that learns of it in the round trip for its limits, or waits for the sum alone, is refused and holds nothing."""
    use(addon, client(limits=Limits(9, 10_000, 1), budget=Budget(1.0, "total")), client("rich", budget=Budget(1.0, "total")))
    budgets = addon.teams.budgets

    async def later() -> None:
        budgets.set_used("client rich", TOTAL, 1.0)

    def refresh(states: Iterable[BudgetState], *, wait: bool) -> Awaitable[None] | None:
        assert not any(state.gone for state in states)
        if wait:
            return later()
        budgets.set_used("client alice", TOTAL, 1.0)
        return None

    budgets.on_refresh = refresh
    for name in ("alice", "rich"):
        assert "insufficient_quota" == code(await ask(addon, asking(key=f"sk-{name}")))
    limits = (await page(addon))["limits"]
    assert [9, 10_000, 1] == [limit["remaining"] for limit in limits.values()]


@pytest.mark.parametrize("more", ["", "x" * LARGE])
async def test_the_base_model_of_a_fine_tuning_job(addon: AzureOpenAIProxy, more: str) -> None:
    """It is refused like any other model that the client may not use."""
    use(addon, client(models=("gpt-4o*",)))
    flows = [
        await ask(addon, asking("POST", "/v1/fine_tuning/jobs", {"training_file": "file-1", "suffix": more, "model": model}))
        for model in ("gpt-4.1", "gpt-4o-2024-08-06")
    ]
    assert (403, "model_not_found", None) == (status(flows[0]), code(flows[0]), flows[1].response)


@pytest.mark.parametrize("more", ["", "x" * LARGE])
async def test_the_models_of_tools(addon: AzureOpenAIProxy, more: str) -> None:
    """The model that makes a response's images, in the tool or in Azure's header, is one that the client may use."""
    use(addon, client(models=("gpt-4o*", "images")))
    for image, allowed in (("gpt-image-1", False), ("images", True)):
        body = {"model": "gpt-4o", "input": more, "tools": [{"type": "web_search"}, {"type": "image_generation", "model": image}]}
        in_tool = await ask(addon, asking("POST", "/v1/responses", body))
        asked = asking("POST", "/v1/responses", {"model": "gpt-4o", "input": more})
        asked.request.headers["x-ms-oai-image-generation-deployment"] = image
        for flow in (in_tool, await ask(addon, asked)):
            assert (allowed, None if allowed else "model_not_found") == (flow.response is None, None if allowed else code(flow))
    asked = asking("POST", "/v1/responses", {"model": "gpt-4o", "input": more})
    asked.request.headers["x-ms-oai-image-generation-deployment"] = "gpt-4o-images, gpt-image-1"  # as two headers are joined
    assert "model_not_found" == code(await ask(addon, asked))


@pytest.mark.parametrize("key", ["sk-alice", "sk-alice-and-more"])
async def test_a_key_that_is_written_into_other_places(addon: AzureOpenAIProxy, key: str) -> None:
    """It goes to no upstream, also inside a longer header or parameter, if it is too long to be a part of a word."""
    use(addon, Client(name="alice", keys=(ClientKey(digest(key)),)))
    places = f"a={key}&{key}=b&c=x%20{key.replace('-', '%2D')}&d=sk-ali&e=x{key}"
    headers = {"x-one": key, "x-two": f"Basic {key}", "referer": f"http://page/?key={key}&x", "x-kept": "sk-ali"}
    flow = await ask(addon, asking(path=f"/v1/chat/completions?{places}", key=key, **headers))
    assert flow.response is None
    long = len(key) >= 16
    assert ("d=sk-ali" if long else f"{key}=b&d=sk-ali&e=x{key}") == flow.request.path.partition("?")[2]
    assert ({"x-kept"} if long else {"x-kept", "referer"}) == {"x-one", "x-two", "referer", "x-kept"} & set(flow.request.headers)


@pytest.mark.parametrize("path", ["/v1/files/{}", "/v1/files/x{}", "/openai/deployments/{}/chat/completions", "/v1/responses/{}?a=b"])
async def test_a_key_in_the_path(addon: AzureOpenAIProxy, path: str) -> None:
    """It cannot be removed from there, so the request is refused, unless the key may be an ordinary word."""
    for key, refused in (("sk-alice", False), ("sk-alice-and-more", True)):
        use(addon, Client(name="alice", keys=(ClientKey(digest(key)),)))
        for written in (key, key.replace("-", "%2D")):
            flow = await ask(addon, asking("POST" if "chat" in path else "GET", path.format(written), key=key))
            assert refused == (flow.response is not None)
            assert not refused or (400, "key_in_path") == (status(flow), code(flow))


async def test_a_request_without_a_model(addon: AzureOpenAIProxy) -> None:
    """A model that only Azure would find is refused for a client that may not use all models, or has a budget."""
    for restricted in (client(models=("gpt-4o*",)), client(budget=Budget(1.0)), client()):
        use(addon, restricted)
        flow = await ask(addon, asking("POST", "/v1/responses", {"input": "x", "prompt": {"id": "p"}}))
        assert (restricted != client()) == (flow.response is not None)
        assert flow.response is None or code(flow) == "model_not_found"


async def test_a_model_without_a_price(addon: AzureOpenAIProxy) -> None:
    """It is refused by name, or allowed without cost; an answer without a price costs the price that admitted it."""
    use(addon, client(budget=Budget(1.0)))
    flow = await ask(addon, asking(body=CHAT | {"model": "mine"}))
    assert (403, "model_without_price") == (status(flow), code(flow))
    await answer(addon, await ask(addon, asking()), model="new-model", usage=USAGE)
    spent = (await page(addon))["budget"]["used_usd"]
    assert spent > 0
    use(addon, client(budget=Budget(1.0)), unpriced="allow")
    await answer(addon, await ask(addon, asking(body=CHAT | {"model": "mine"})), model="mine", usage=USAGE)
    assert spent == (await page(addon))["budget"]["used_usd"]


async def test_the_billing_probes(addon: AzureOpenAIProxy) -> None:
    """They answer from the budget, or from the ledger, and other probes as without clients."""
    use(addon, client(budget=Budget(2.0), expires=dt.datetime(2099, 1, 1, tzinfo=dt.UTC)), client("plain"))
    subscription, usage = "/v1/dashboard/billing/subscription", "/v1/dashboard/billing/usage"
    limited, plain = await page(addon, subscription), await page(addon, subscription, key="sk-plain")
    assert (2.0, 4070908800) == (limited["hard_limit_usd"], limited["access_until"])
    assert (0, 0) == (plain["hard_limit_usd"], plain["access_until"])
    await answer(addon, await ask(addon, asking()), usage=USAGE)
    cents = round((await page(addon))["budget"]["used_usd"] * 100, 6)
    assert cents == (await page(addon, usage))["total_usage"] > 0
    assert 400 == status(await ask(addon, asking("GET", f"{usage}?start_date=x", b"")))

    async def spent(name: str, first: dt.date, last: dt.date) -> float | None:
        return {("alice", dt.date(2026, 1, 2), dt.date(2026, 2, 3)): 1.25}.get((name, first, last))

    addon.teams.spent = spent
    assert 125.0 == (await page(addon, f"{usage}?start_date=2026-01-02&end_date=2026-02-03"))["total_usage"]
    assert cents == (await page(addon, usage))["total_usage"]
    addon.teams.spent = None
    assert cents == (await page(addon, usage))["total_usage"]
    assert "grants" in await page(addon, "/v1/dashboard/billing/credit_grants")
    assert "2099-01-01T00:00:00Z" == (await page(addon))["expires"]


# WebSockets


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, addon: AzureOpenAIProxy) -> list[tuple[bool, dict[str, Any]]]:
    """The messages that the proxy injects: whether to the client, and their content."""
    found: list[tuple[bool, dict[str, Any]]] = []

    def call(name: str, _: http.HTTPFlow, to_client: bool, content: bytes, is_text: bool) -> None:
        assert ("inject.websocket", True) == (name, is_text)
        found.append((to_client, json.loads(content)))

    monkeypatch.setattr(ctx.master.commands, "call", call)
    return found


async def opened(addon: AzureOpenAIProxy, path: str = "/v1/realtime?model=gpt-4o") -> http.HTTPFlow:
    flow = await ask(addon, asking("GET", path, b"", upgrade="websocket"))
    assert flow.response is None
    flow.response = http.Response.make(101)
    flow.websocket = WebSocketData()
    addon.responseheaders(flow)
    addon.response(flow)
    return flow


async def say(
    addon: AzureOpenAIProxy, flow: http.HTTPFlow, event: dict[str, Any], *, client: bool = True, injected: bool = False
) -> WebSocketMessage:
    assert flow.websocket
    new = WebSocketMessage(Opcode.TEXT, client, json.dumps(event).encode(), injected=injected)
    flow.websocket.messages.append(new)
    if waiting := addon.websocket_message(flow):
        await waiting
    return new


def created(id: str) -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": id}}


def done(id: str, **usage: int) -> dict[str, Any]:
    return {
        "type": "response.done",
        "response": {"id": id, "status": "completed", "model": "gpt-4o", **({"usage": usage} if usage else {})},
    }


@pytest.mark.parametrize("slow", [False, True])
async def test_each_response_of_a_websocket_is_admitted(addon: AzureOpenAIProxy, sent: list[Any], slow: bool) -> None:
    """One over a limit is not sent to Azure, and the client gets an error event, which passes as it is."""
    use(addon, client(limits=Limits(2, 10_000, 1), budget=Budget(1.0)))
    if slow:
        addon.teams.limits = Slow()
    flow = await opened(addon)
    await say(addon, flow, {"type": "conversation.item.create", "item": {"content": [{"type": "input_text", "text": "x" * 40}]}})
    assert not (await say(addon, flow, {"type": "response.create"})).dropped
    assert (await say(addon, flow, {"type": "response.create"})).dropped
    ((to_client, event),) = sent
    assert (True, "error", "rate_limit_exceeded") == (to_client, event["type"], event["error"]["code"])
    assert event == json.loads((await say(addon, flow, event, client=False, injected=True)).content)
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, {"type": "response.output_text.delta", "delta": "Hello"}, client=False)
    await say(addon, flow, done("r1", input_tokens=30, output_tokens=5), client=False)
    shown = await page(addon)
    assert (9965, 1) == (shown["limits"]["tokens_per_minute"]["remaining"], shown["limits"]["max_parallel"]["remaining"])
    assert shown["budget"]["used_usd"] > 0
    await say(addon, flow, {"type": "x"}, client=False, injected=True)
    await say(addon, flow, {"type": "response.create", "response": {"max_output_tokens": 1}})
    addon.websocket_end(flow)
    assert {"limit": 1, "remaining": 1} == (await page(addon))["limits"]["max_parallel"]


@pytest.mark.parametrize("slow", [False, True])
async def test_a_response_that_azure_starts(addon: AzureOpenAIProxy, sent: list[Any], slow: bool) -> None:
    """Over a limit it is cancelled at Azure, and the client gets an error event; the usage is charged nevertheless."""
    use(addon, client(limits=Limits(1), budget=Budget(1.0)))
    if slow:
        addon.teams.limits = Slow()
    flow = await opened(addon)
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, done("r1", input_tokens=30, output_tokens=5), client=False)
    assert [] == sent
    spent = (await page(addon))["budget"]["used_usd"]
    assert not (await say(addon, flow, created("r2"), client=False)).dropped
    assert [(False, "response.cancel"), (True, "error")] == [(to_client, event["type"]) for to_client, event in sent]
    assert "r2" == sent[0][1]["response_id"]
    await say(addon, flow, done("r2", input_tokens=30, output_tokens=5), client=False)
    assert (await page(addon))["budget"]["used_usd"] > spent


async def test_a_key_that_is_revoked_during_a_websocket(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """A running response ends; the next one gets an error event, and one that Azure starts is cancelled."""
    use(addon, client())
    flow = await opened(addon)
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, created("r1"), client=False)
    use(addon, client(disabled=True))
    assert 401 == status(await ask(addon, asking()))
    await say(addon, flow, done("r1", input_tokens=30, output_tokens=5), client=False)
    assert [] == sent
    assert (await say(addon, flow, {"type": "response.create"})).dropped
    await say(addon, flow, created("r2"), client=False)
    use(addon, client("bob"))
    assert 401 == status(await ask(addon, asking()))
    assert (await say(addon, flow, {"type": "response.create"})).dropped
    assert [(True, "error"), (False, "response.cancel"), (True, "error"), (True, "error")] == [(to, event["type"]) for to, event in sent]
    assert [(401, "invalid_api_key")] * 3 == [(event["status"], event["error"]["code"]) for to, event in sent if to]


async def test_limits_that_change_during_a_websocket(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """The next response is admitted by the limits, the models and the group of now, whether the client or Azure starts it."""
    use(addon, client())
    flow = await opened(addon)
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, done("r1", input_tokens=30, output_tokens=5), client=False)
    use(addon, client(group="team"), groups=[Group(name="team", limits=Limits(1))])
    await ask(addon, asking("GET", "/healthz", b""))  # the settings are applied
    assert not (await say(addon, flow, {"type": "response.create"})).dropped
    assert (await say(addon, flow, {"type": "response.create"})).dropped
    await say(addon, flow, created("r2"), client=False)
    await say(addon, flow, created("r3"), client=False)
    use(addon, client(models=("gpt-4.1",)))
    await ask(addon, asking("GET", "/healthz", b""))
    assert (await say(addon, flow, {"type": "response.create"})).dropped
    await say(addon, flow, created("r4"), client=False)
    limit, model = (True, "rate_limit_exceeded"), (True, "model_not_found")
    seen = [(to, event["error"]["code"] if to else None) for to, event in sent]
    assert [limit, (False, None), limit, model, (False, None), model] == seen
    use(addon, client())
    await ask(addon, asking("GET", "/healthz", b""))
    assert not (await say(addon, flow, {"type": "response.create"})).dropped


async def test_the_present_client_of_a_websocket_is_recorded(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """A key that was given to another client counts for that one from the next response on."""
    use(addon, client())
    flow = await opened(addon)
    use(addon, Client(name="bob", keys=(ClientKey(digest("sk-alice")),), limits=Limits(1)))
    await ask(addon, asking("GET", "/healthz", b""))
    exchange = addon.registry.exchanges[flow]
    assert not (await say(addon, flow, {"type": "response.create"})).dropped
    assert exchange.admission
    assert exchange.meter
    assert ("bob", "bob") == (exchange.admission.client.name, exchange.meter.client)
    exchange.admission.meter = None  # nothing receives usage records
    assert (await say(addon, flow, {"type": "response.create"})).dropped


async def test_a_group_that_does_not_exist(addon: AzureOpenAIProxy) -> None:
    """A managed key whose group the file does not have is refused, rather than served without the limits of the group."""
    use(addon, client("bob"), groups=[Group(name="team", limits=Limits(1))])
    stray = client(group="taem")
    addon.configure(set())
    addon.teams.directory.use_managed([stray])
    flow = await ask(addon, asking())
    assert (403, "group_not_found") == (status(flow), code(flow))
    assert "group taem" in message(flow)
    assert "azure_openai_client_groups" in message(flow)
    assert 403 == status(await ask(addon, asking("GET", "/azure-openai-proxy/key", b"")))
    addon.teams.directory.use_managed([replace(stray, group="team")])
    assert [None, 429] == [(await ask(addon, asking())).response and 429 for _ in range(2)]


@pytest.mark.parametrize("body", [b"v=0", {"session": {"type": "realtime"}}])
async def test_the_model_in_the_query_of_a_call(addon: AzureOpenAIProxy, body: object) -> None:
    """A realtime call names its model in the query too: the client has to be allowed to use it, and Azure gets its deployment."""
    use(addon, client(models=("gpt-4.1",)))
    kind = "application/sdp" if isinstance(body, bytes) else "application/json"
    flow = await ask(addon, asking("POST", "/v1/realtime/calls?a=b&model=gpt-4o", body, **{"content-type": kind}))
    assert (403, "model_not_found") == (status(flow), code(flow))
    addon.runtime.settings = replace(addon.runtime.settings, mapper=Mapper.parse("gpt-4.1=my deployment"))
    flow = await ask(addon, asking("POST", "/v1/realtime/calls?a=b&model=gpt%2D4.1", body, **{"content-type": kind}))
    assert None is flow.response
    assert "/openai/v1/realtime/calls?a=b&model=my%20deployment" == flow.request.path


async def test_a_transcription_counts(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """Its tokens count for the limit and its cost for the budget, and the reservation of a running response stays."""
    use(addon, client(limits=Limits(None, 10_000, 1), budget=Budget(1.0)))
    flow = await opened(addon)
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, created("r1"), client=False)
    reserved = 10_000 - (await page(addon))["limits"]["tokens_per_minute"]["remaining"]
    usage = {"type": "tokens", "input_tokens": 30, "output_tokens": 5}
    event = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "i", "usage": usage}
    await say(addon, flow, event, client=False)
    shown = await page(addon)
    assert (10_000 - reserved - 35, 0) == (
        shown["limits"]["tokens_per_minute"]["remaining"],
        shown["limits"]["max_parallel"]["remaining"],
    )
    assert shown["budget"]["used_usd"] > 0
    await say(addon, flow, done("r1", input_tokens=1, output_tokens=1), client=False)
    shown = await page(addon)
    assert (9_963, 1) == (shown["limits"]["tokens_per_minute"]["remaining"], shown["limits"]["max_parallel"]["remaining"])


async def test_a_response_that_is_not_created(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """Its place is free after Azure's error."""
    use(addon, client(limits=Limits(max_parallel=1)))
    flow = await opened(addon)
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, {"type": "error", "error": {"code": "x"}}, client=False)
    assert not (await say(addon, flow, {"type": "response.create"})).dropped
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, {"type": "error", "error": {"code": "x"}}, client=False)
    await say(addon, flow, done("r1"), client=False)
    await say(addon, flow, done("r2", input_tokens=1, output_tokens=1), client=False)
    assert [] == sent


async def test_responses_over_a_websocket(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """An error ends the response that was requested, and the end of the connection those that run."""
    use(addon, client(limits=Limits(9, 10_000)))
    flow = await opened(addon, "/v1/responses")
    await say(addon, flow, {"type": "response.create", "model": "gpt-4o", "input": "x" * 40})
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, {"type": "error", "status": 429, "error": {"code": "x"}}, client=False)
    assert 10_000 == (await page(addon))["limits"]["tokens_per_minute"]["remaining"]
    await say(addon, flow, {"type": "response.create", "model": "gpt-4o", "input": "x" * 40})
    await say(addon, flow, created("r2"), client=False)
    await say(addon, flow, {"type": "response.output_text.delta", "delta": "x" * 8}, client=False)
    addon.websocket_end(flow)
    assert 10_000 - 12 == (await page(addon))["limits"]["tokens_per_minute"]["remaining"]
    assert [] == sent


async def test_the_model_in_the_query_of_a_websocket(addon: AzureOpenAIProxy) -> None:
    """It is checked also where the messages name the model."""
    use(addon, client(models=("gpt-4o",)))
    flow = await ask(addon, asking("GET", "/v1/responses?model=gpt-4.1", b"", upgrade="websocket"))
    assert (403, "model_not_found") == (status(flow), code(flow))


async def test_an_upload_of_a_page_that_may_not_send_it(addon: AzureOpenAIProxy) -> None:
    """It counts for no limit."""
    rule = origins.allowed(origins.parse(["https://other.example"]), frozenset(), keyed=False)
    use(addon, client(limits=Limits(9, max_parallel=1)), origins=rule)
    for limits in (addon.teams.limits, Slow()):
        addon.teams.limits = limits
        assert 403 == status(await ask(addon, asking(path="/v1/files", body=b"", origin="https://page.example", **MULTIPART)))
        shown = (await page(addon))["limits"]
        assert (9, 1) == (shown["requests_per_minute"]["remaining"], shown["max_parallel"]["remaining"])


async def test_the_models_of_a_websocket(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """A model that the client may not use, or that has no price, is refused in each message, also in a large one."""
    use(addon, client(models=("gpt-4o*", "mine"), budget=Budget(1.0)))
    flow = await opened(addon, "/v1/responses")
    for event in (
        {"type": "response.create", "model": "gpt-4.1"},
        {"type": "response.create", "model": "mine"},
        {"type": "response.create", "model": "gpt-4.1", "input": "x" * LARGE},
        {"type": "response.create", "model": "gpt-4o", "tools": [{"type": "image_generation", "model": "gpt-image-1"}]},
        {"type": "response.create", "response": {"model": "gpt-4o", "tools": [{"model": "gpt-image-1"}], "input": "x" * LARGE}},
    ):
        assert (await say(addon, flow, event)).dropped
    assert ["model_not_found", "model_without_price", *["model_not_found"] * 3] == [event["error"]["code"] for _, event in sent]
    assert not (await say(addon, flow, {"type": "response.create", "model": "gpt-4o", "input": "x" * LARGE})).dropped
    assert flow.websocket
    broken = WebSocketMessage(Opcode.TEXT, True, b'{"model"')
    flow.websocket.messages.append(broken)
    addon.websocket_message(flow)
    assert not broken.dropped


@pytest.mark.parametrize("text", ["", "x" * LARGE])
async def test_a_message_that_is_written_with_escapes(addon: AzureOpenAIProxy, sent: list[Any], text: str) -> None:
    """Its model and its type count as Azure reads them."""
    use(addon, client(models=("gpt-4o*",), limits=Limits(1)))
    flow = await opened(addon, "/v1/responses")
    assert flow.websocket
    dropped = []
    for written in (
        rb'{"type":"response.create","mod\u0065l":"gpt-4.1","input":"%s"}',
        rb'{"type":"response\u002ecreate","model":"gpt-4o","input":"%s"}',
        rb'{"type":"response\u002Ecreate","model":"gpt-4o","input":"%s"}',
    ):
        flow.websocket.messages.append(message := WebSocketMessage(Opcode.TEXT, True, written % text.encode()))
        if waiting := addon.websocket_message(flow):
            await waiting
        dropped.append(message.dropped)
    assert [True, False, True] == dropped
    assert ["model_not_found", "rate_limit_exceeded"] == [event["error"]["code"] for _, event in sent]


async def test_a_message_that_cannot_be_checked(addon: AzureOpenAIProxy, sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the proxy's own refuses the response that it requests."""
    use(addon, client(limits=Limits(9)))
    flow = await opened(addon, "/v1/responses")
    monkeypatch.setattr(Admission, "reserve", lambda *_: 1 / 0)
    assert (await say(addon, flow, {"type": "response.create", "model": "gpt-4o"})).dropped
    assert "failed to check the key" in sent[0][1]["error"]["message"]


async def test_a_large_message_waits(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """It is read in slices, and then admitted by counters that others share."""
    use(addon, client(limits=Limits(1)))
    addon.teams.limits = Slow()
    flow = await opened(addon, "/v1/responses")
    event = {"type": "response.create", "model": "gpt-4o", "input": "x" * LARGE}
    assert [False, True] == [(await say(addon, flow, event)).dropped for _ in range(2)]
    assert "rate_limit_exceeded" == sent[0][1]["error"]["code"]
    assert None is Exchange(addon.settings, None).messages.admit(b"", None, from_client=True)


AUDIO = {"type": "input_audio_buffer.append", "audio": "AAAA"}
TRANSCRIBED = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "i", "transcript": "x" * 40}
TRANSCRIBER = {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}}


def codes(sent: list[Any]) -> list[str]:
    return [event["error"]["code"] for _, event in sent]


async def test_a_session_that_only_transcribes_ends_with_the_budget(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """Its audio is refused from then on: with one event for the pieces that are appended, and one for each commit."""
    use(addon, client(budget=Budget(0.000001, "total")))
    flow = await opened(addon, "/v1/realtime?intent=transcription")
    await say(addon, flow, TRANSCRIBER)
    assert not (await say(addon, flow, AUDIO)).dropped
    await say(addon, flow, TRANSCRIBED | {"usage": {"input_tokens": 10, "output_tokens": 10}}, client=False)
    for event in (AUDIO, AUDIO, {"type": "input_audio_buffer.commit"}, AUDIO):
        assert (await say(addon, flow, event)).dropped
    assert ["insufficient_quota"] * 2 == codes(sent)
    assert not (await say(addon, flow, {"type": "input_audio_buffer.clear"})).dropped
    use(addon, client())
    await ask(addon, asking("GET", "/healthz", b""))
    assert not (await say(addon, flow, AUDIO)).dropped
    use(addon, client(disabled=True))
    await ask(addon, asking("GET", "/healthz", b""))
    assert [True, True] == [(await say(addon, flow, AUDIO)).dropped for _ in range(2)]
    assert [*["insufficient_quota"] * 2, "invalid_api_key"] == codes(sent)


async def test_audio_and_the_tokens_of_a_minute(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """Transcriptions use them up; a response that runs has reserved its own, and the client may speak meanwhile."""
    use(addon, client(limits=Limits(tokens_per_minute=1000)))
    flow = await opened(addon)
    await say(addon, flow, {"type": "response.create", "response": {"max_output_tokens": 1000}})
    assert not (await say(addon, flow, AUDIO)).dropped
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, done("r1", input_tokens=3, output_tokens=5), client=False)
    assert not (await say(addon, flow, AUDIO)).dropped
    await say(addon, flow, TRANSCRIBED | {"usage": {"input_tokens": 990, "output_tokens": 10}}, client=False)
    assert (await say(addon, flow, AUDIO)).dropped
    assert ["rate_limit_exceeded"] == codes(sent)


@pytest.mark.parametrize("usage", [{"type": "duration", "seconds": 30}, None])
async def test_a_transcription_in_seconds(addon: AzureOpenAIProxy, sent: list[Any], usage: Any) -> None:
    """Its tokens are unknown, so an audio and its text are charged as an estimate."""
    use(addon, client(budget=Budget(1.0), limits=Limits(tokens_per_minute=10_000)))
    flow = await opened(addon)
    await say(addon, flow, TRANSCRIBER)
    await say(addon, flow, TRANSCRIBED | {"usage": usage}, client=False)
    assert 10_000 - 1010 == (await page(addon))["limits"]["tokens_per_minute"]["remaining"]
    assert 0 < await used(addon, "alice")
    assert [] == sent


async def test_a_session_of_a_model_without_a_price(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """A client with a budget cannot choose one, for the session or for its transcriptions."""
    use(addon, client(budget=Budget(1.0)))
    flow = await opened(addon)
    for session in ({"model": "mine"}, {"input_audio_transcription": {"model": "whisper-1"}}):
        assert (await say(addon, flow, {"type": "session.update", "session": session})).dropped
    assert ["model_without_price"] * 2 == codes(sent)


async def test_errors_of_several_responses(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """An error frees the place of the response that it is about, also while another one runs; one about another message frees none."""
    use(addon, client(limits=Limits(max_parallel=3)))
    flow = await opened(addon)

    async def places() -> int:
        return int((await page(addon))["limits"]["max_parallel"]["remaining"])

    async def fail(**error: Any) -> int:
        await say(addon, flow, {"type": "error", "error": error}, client=False)
        return await places()

    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, created("r1"), client=False)
    await say(addon, flow, {"type": "response.create", "event_id": "second"})
    await say(addon, flow, {"type": "response.create", "event_id": "third"})
    assert 0 == await places()
    assert [0, 0, 1] == [await fail(event_id="other"), await fail(code="x"), await fail(event_id="second")]
    assert 2 == await fail(code="conversation_already_has_active_response", event_id=None)
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, done("r1"), client=False)
    await say(addon, flow, {"type": "error", "error": None}, client=False)
    assert 3 == await places()


async def test_a_response_that_was_not_created_yet(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """A client that closes its WebSocket at once pays the input of what it has requested; a connection that Azure closes costs nothing."""
    use(addon, client(budget=Budget(1.0), limits=Limits(tokens_per_minute=10_000)))
    for by_client, left in ((False, 10_000 - 510), (True, 10_000 - 520)):
        flow = await opened(addon, "/v1/responses")
        assert flow.websocket
        flow.websocket.closed_by_client = by_client
        await say(addon, flow, {"type": "response.create", "model": "gpt-4o", "input": "x" * 40})
        addon.websocket_end(flow)
        assert left == (await page(addon))["limits"]["tokens_per_minute"]["remaining"]
        assert (10 * 2.5e-6 if by_client else 0.0) == await used(addon, "alice")


async def test_too_many_responses_of_a_websocket(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """More than are remembered are refused, or cancelled."""
    use(addon, client(limits=Limits(9999)))
    flow = await opened(addon)
    for number in range(MOST):
        await say(addon, flow, created(f"r{number}"), client=False)
    assert (await say(addon, flow, {"type": "response.create"})).dropped
    await say(addon, flow, created("more"), client=False)
    assert [(True, "error"), (False, "response.cancel"), (True, "error")] == [(to, event["type"]) for to, event in sent]
    await say(addon, flow, done("r0"), client=False)
    await say(addon, flow, done("more", input_tokens=1, output_tokens=1), client=False)
    assert not (await say(addon, flow, {"type": "response.create"})).dropped


@pytest.mark.parametrize("text", ["", "x" * LARGE])
async def test_binary_messages(addon: AzureOpenAIProxy, sent: list[Any], text: str) -> None:
    """JSON in them is checked as in text."""
    use(addon, client(models=("gpt-4o",), limits=Limits(1)))
    flow = await opened(addon, "/v1/responses")
    assert flow.websocket
    dropped = []
    for model in ("gpt-4.1", "gpt-4o", "gpt-4o"):
        event = {"type": "response.create", "model": model, "input": text}
        flow.websocket.messages.append(message := WebSocketMessage(Opcode.BINARY, True, json.dumps(event).encode()))
        if waiting := addon.websocket_message(flow):
            await waiting
        dropped.append(message.dropped)
    assert ([True, False, True], ["model_not_found", "rate_limit_exceeded"]) == (dropped, codes(sent))


async def test_a_broken_websocket_frees_its_places(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """An error ends what was requested and what runs."""
    use(addon, client(limits=Limits(max_parallel=1)))
    flow = await opened(addon)
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, created("r1"), client=False)
    flow.error = Error("broken")
    addon.error(flow)
    assert (1, []) == ((await page(addon))["limits"]["max_parallel"]["remaining"], sent)


async def test_a_request_without_tokens_passes_a_full_window(addon: AzureOpenAIProxy) -> None:
    """Only requests to models need tokens."""
    use(addon, client(limits=Limits(tokens_per_minute=10)))
    await answer(addon, await ask(addon, asking()), usage={"prompt_tokens": 30, "completion_tokens": 4})
    assert 429 == status(await ask(addon, asking()))
    assert None is (await ask(addon, asking("GET", "/v1/files", b""))).response


async def test_a_websocket_without_usage(addon: AzureOpenAIProxy, sent: list[Any]) -> None:
    """The connection itself counts, until it is closed."""
    use(addon, client(limits=Limits(9, max_parallel=1)))
    flow = await opened(addon, "/v1/realtime/translations?model=gpt-4o")
    await say(addon, flow, {"type": "response.create"})
    await say(addon, flow, created("r1"), client=False)
    assert 429 == status(await ask(addon, asking()))
    addon.websocket_end(flow)
    assert None is (await ask(addon, asking())).response
    assert [] == sent
