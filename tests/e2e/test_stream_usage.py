"""Streams whose client does not ask for usage, through a real mitmdump with an access log: the usage is known, and the client sees none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from azure_simulator import refusals, reshape
from support.access_log import AccessLog
from support.asking import H1, H2
from support.curl import Curl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from azure_simulator import Simulator
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call
    from conftest import Proxies
    from support.processes import Mitmdump

MESSAGES = [{"role": "user", "content": "one two three"}]
CHAT = ("/v1/chat/completions", {"model": "gpt-5-mini", "messages": MESSAGES, "n": 2, "stream": True})
COMPLETION = ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": ["one two", "three"], "stream": True})
LONG = [{"role": "user", "content": "word " * 60_000}]
LARGE = ("/v1/chat/completions", {"model": "gpt-4o", "messages": LONG, "max_tokens": 20, "stream": True, "stream_options": {}})
OPTIONS = {"include_usage": True}
UNIQUE = re.compile(rb'"(?:id|obfuscation)":"[^"]*"|"created":[0-9]+')

type Send = Callable[..., str]


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> AccessLog:
    return AccessLog(tmp_path_factory.mktemp("access") / "access.log")


def same(answer: Answer, call: Call) -> Answer:
    """Azure's stream without what differs from call to call."""
    parts = (UNIQUE.sub(lambda match: match[0].split(b":")[0] + b":1", part) if isinstance(part, bytes) else part for part in answer.parts)
    return replace(answer, parts=tuple(parts))


@pytest.fixture
def send(azure: Simulator, tmp_path: Path) -> Send:
    """Send a request, and return the body of its response."""

    def send(mitmdump: Mitmdump, path: str, body: dict[str, Any], http: str = H1) -> str:
        (tmp_path / "body").write_text(json.dumps(body))
        headers = ("-H", f"authorization: Bearer {azure.key}", "-H", "content-type: application/json")
        curl = Curl(("--cacert", str(mitmdump.ca), http))
        answer = curl(*headers, f"{mitmdump.https_url}{path}", "--data-binary", f"@{tmp_path / 'body'}")
        assert (200, http.removeprefix("--http").removesuffix(".0")) == (answer.status, answer.http), answer
        return answer.body

    return send


def requested(azure: Simulator) -> list[Any]:
    """The `stream_options` of each request that Azure has received."""
    return [json.loads(request.body).get("stream_options") for request in azure.requests]


@pytest.mark.parametrize("split", [(), (1,)], ids=["events", "bytes"])
@pytest.mark.parametrize("http", [H1, H2])
@pytest.mark.parametrize("fast", ["true", "false"])
@pytest.mark.parametrize("request_", [CHAT, COMPLETION, LARGE], ids=["chat", "completion", "large"])
def test_the_client_sees_no_difference(
    request_: tuple[str, dict[str, Any]],
    fast: str,
    http: str,
    split: tuple[int, ...],
    azure: Simulator,
    proxy: Proxies,
    log: AccessLog,
    send: Send,
) -> None:
    """The stream has the same bytes as without accounting, and the log has the tokens that Azure counted."""
    path, body = request_
    options: dict[str, Any] = {"azure_openai_fast_path": fast, "azure_openai_apiversion": "v1"}
    azure.faults.always(same, *([reshape.split(*split)] if split else []))
    without = send(proxy(**options), path, body, http)
    counted = proxy(azure_openai_access_log=log.path, **options)
    log.forget()
    assert without == send(counted, path, body, http)
    assert [body.get("stream_options"), OPTIONS] == requested(azure)
    line = log.one()
    azure.reset()
    plain = {**body, "stream": False}
    plain.pop("stream_options", None)
    expected = json.loads(send(proxy(**options), path, plain, http))["usage"]
    assert ("known", expected["prompt_tokens"], expected["completion_tokens"]) == (
        line["usage"],
        line["input_tokens"],
        line["output_tokens"],
    )
    assert expected.get("prompt_tokens_details", {}).get("cached_tokens") == line["cached_input_tokens"]


@pytest.mark.parametrize("path, body", [CHAT, COMPLETION], ids=["chat", "completion"])
def test_a_client_that_asks_gets_azures_usage(
    path: str, body: dict[str, Any], azure: Simulator, proxy: Proxies, log: AccessLog, send: Send
) -> None:
    """The request stays as it is, and so does the chunk of the usage."""
    azure.faults.always(same)
    asking = body | {"stream_options": OPTIONS}
    without = send(proxy(azure_openai_apiversion="v1"), path, asking)
    assert without == send(proxy(azure_openai_access_log=log.path, azure_openai_apiversion="v1"), path, asking)
    assert '"usage":null' in without
    assert '"usage":{' in without
    assert [OPTIONS] * 2 == requested(azure)


@pytest.mark.parametrize("repair", ["true", "false"])
def test_a_deployment_that_refuses(repair: str, azure: Simulator, proxy: Proxies, log: AccessLog, send: Send) -> None:
    """Its streams are sent again without the option, also with one attempt and without repair; the next ones at once."""
    mitmdump = proxy(
        azure_openai_access_log=log.path, azure_openai_apiversion="v1", azure_openai_repair=repair, azure_openai_max_attempts=1
    )
    log.forget()
    azure.faults.always(refusals.stream_options)
    path, body = CHAT
    assert send(mitmdump, path, body).endswith("data: [DONE]\n\n")
    assert [OPTIONS, None] == requested(azure)
    line = log.one()
    assert ("unknown", None, 200) == (line["usage"], line["input_tokens"], line["status"])
    assert send(mitmdump, path, body).endswith("data: [DONE]\n\n")
    assert [OPTIONS, None, None] == requested(azure)
    assert 1 == log.one()["attempts"]


def test_a_version_that_does_not_know_the_option(azure: Simulator, proxy: Proxies, log: AccessLog, send: Send) -> None:
    """With an old version of the API the option is not sent."""
    mitmdump = proxy(azure_openai_access_log=log.path, azure_openai_apiversion="2024-06-01")
    log.forget()
    assert send(mitmdump, "/v1/chat/completions", {"model": "gpt-4o", "messages": MESSAGES, "stream": True}).endswith("data: [DONE]\n\n")
    assert [None] == requested(azure)
    assert "unknown" == log.one()["usage"]


def test_a_stream_that_is_not_translated(azure: Simulator, proxy: Proxies, log: AccessLog, send: Send) -> None:
    """Where Azure's streams pass as they are, only the usage is removed."""
    azure.faults.always(same)
    path, body = CHAT
    options: dict[str, Any] = {"azure_openai_normalize": "false", "azure_openai_apiversion": "v1"}
    without = send(proxy(**options), path, body)
    assert "prompt_filter_results" in without
    mitmdump = proxy(azure_openai_access_log=log.path, **options)
    log.forget()
    assert without == send(mitmdump, path, body)
    assert "known" == log.one()["usage"]
