"""Every operation of OpenAI through a real mitmdump, in both of Azure's forms: the request at Azure, or the proxy's own response.

Bodies and path values are those of OpenAI's own document where there is one (operations.py says where), else the simplest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from azure_simulator import Simulator, forms
from support import openapi, operations
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Received
    from conftest import Proxies
    from support.operations import Row
    from support.processes import Mitmdump

# OpenAI's model name for each family of operations, and the model of its deployment. The first that fits counts.
MODELS = {
    "/chat/completions": ("gpt-4o", "gpt-4o"),
    "/completions": ("gpt-3.5-turbo-instruct", "gpt-35-turbo-instruct"),
    "/embeddings": ("text-embedding-3-small", "text-embedding-3-small"),
    "/audio/speech": ("tts-1", "tts"),
    "/audio/": ("whisper-1", "whisper"),
    "/images/": ("gpt-image-1", "gpt-image-1"),
    "/videos": ("sora-2", "sora-2"),
    "/realtime": ("gpt-realtime", "gpt-realtime"),
    "/live": ("gpt-live-1", "gpt-live-1"),
    "/": ("gpt-4.1", "gpt-4.1"),
}
MAPPER = "*=azure-*"  # so that no name goes through unseen

# Where the document names no model, or there is none: the least that shows it.
SAMPLES: dict[str, Any] = {
    "/chat/completions": {"model": "", "messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"model": "", "prompt": "hi"},
    "/embeddings": {"model": "", "input": "hi"},
    "/audio/speech": {"model": "", "input": "hi", "voice": "alloy"},
    "/images/generations": {"model": "", "prompt": "a corgi"},
    "/images/edits": {"model": "", "prompt": "a corgi", "image": b"png"},
    "/fine_tuning/alpha/graders": {"grader": {"type": "score_model", "model": ""}},
    "/evals/{eval_id}/runs": {"data_source": {"type": "completions", "model": ""}},
    "/evals": {"testing_criteria": [{"type": "string_check"}, {"type": "score_model", "model": ""}]},
    "/realtime/client_secrets": {"session": {"type": "realtime", "model": ""}},
    "/realtime/translations/client_secrets": {"session": {"model": ""}},
    "/realtime/transcription_sessions": {"input_audio_transcription": {"model": ""}},
    "/realtime/calls/": {"type": "realtime", "model": ""},
    "/realtime/calls": {"sdp": "v=0", "session": '{"type":"realtime","model":""}'},
    "/live/": {"session": {"model": ""}},
    "/audio/": {"file": b"RIFF", "model": ""},
    "/uploads": {"data": b"part"},
    "/files": {"file": b"{}\n", "purpose": "batch"},
    "/skills": {"files": b"zip"},
    "/videos/": {"prompt": "a corgi"},
    "/videos": {"model": "", "prompt": "a corgi"},
    "/": {"model": ""},
}
BASE_MODELS = ("/fine_tuning/jobs",)  # what they name is no deployment


def first(table: dict[str, Any], path: str) -> Any:
    return next(value for start, value in table.items() if path.startswith(start))


class Request(NamedTuple):
    """What a client sends."""

    path: str
    values: dict[str, str]
    body: Any = None
    multipart: bool = False


@cache
def document() -> openapi.Document | None:
    """OpenAI's."""
    found = sorted((operations.FOLDER / "specs").glob("openai-*.json"))
    return openapi.Document(operations.load(f"specs/{found[-1].name}")) if found else None


@cache
def azure_document(kind: str) -> tuple[str, set[tuple[str, str]]]:
    """Azure's own document of that kind, its version, and the operations in it; nothing without one."""
    pattern = {"v1": "v1-*", "ga": "20??-??-??.*", "preview": "*-preview.*"}[kind]
    found = sorted((operations.FOLDER / "specs").glob(f"azure-openai-{pattern}"))
    return (found[-1].stem.removeprefix("azure-openai-"), openapi.operations(found[-1])) if found else ("", set())


def example(row: Row) -> Request:
    """The request for a row, its model put in."""
    path = row.path.removeprefix("/v1")
    described, kind = document(), {"json": "application/json", "multipart": "multipart/form-data"}.get(row.body)
    operation = described and (described.operation(row.method, path) or described.operation(row.method, path.partition("?")[0]))
    named = re.findall(r"{(.*?)}", path)
    values = dict.fromkeys(named, "x-1") | (described.values(operation) if described and operation else {})
    model = first({f"/engines/{{engine}}{start}": both for start, both in MODELS.items()} | MODELS, path)[0]
    values |= {name: model for name in named if name in ("model", "engine")}
    body = None
    if kind:
        body = described.body(operation, kind) if described and operation else None
        if body is None or (row.model != "-" and not list(models_in(body))):
            body = first(SAMPLES, path.replace("/engines/{engine}", "")) if row.model != "-" or row.body == "multipart" else {}
        elif described and row.body == "multipart":
            body = {name: b"\x00file" if described.is_file(operation, kind, name) else value for name, value in body.items()}
        if row.body != "multipart":
            body = {name: value for name, value in body.items() if not isinstance(value, bytes)}
        body = with_model(body, model)
        if row.model == "path":
            body = {name: value for name, value in body.items() if name != "model"}
    for name in named:
        path = path.replace(f"{{{name}}}", quote(values[name], safe=":"))
    return Request(f"/v1{path}", values, body, row.body == "multipart")


def with_model(value: Any, model: str) -> Any:
    """Every member called `model` set to it, in JSON inside a form too."""
    match value:
        case dict():
            return {name: model if name == "model" else with_model(item, model) for name, item in value.items()}
        case list():
            return [with_model(item, model) for item in value]
        case str() if value.startswith("{"):
            return json.dumps(with_model(json.loads(value), model))
    return value


def models_in(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every string called `model`, with its place."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if name == "model" and isinstance(item, str):
            yield f"{place}/model", item
        else:
            yield from models_in(item, f"{place}/{name}")


@dataclass
class Asked:
    """One request and its result."""

    request: Request
    answer: httpx.Response
    arrived: list[Received]
    row: Row
    version: str
    key: str
    native: bool = False  # the client speaks Azure's own API, and answers for its paths

    def problems(self) -> Iterator[str]:
        if self.row.handled_by == "azure":
            yield from self._translated()
        else:
            yield from self._answered()

    def _answered(self) -> Iterator[str]:
        if self.arrived:
            yield f"{self.arrived[0].path} was asked for"
        value = self.answer.json()
        if self.row.handled_by == "proxy" and self.row.path != "/v1/moderations":
            if self.answer.status_code != 200 or value["object"] not in ("list", "model", "engine"):
                yield f"answered {self.answer.status_code} {self.answer.text}"
            return
        error = value["error"]
        if (self.answer.status_code, error["type"], error["code"]) != (404, "invalid_request_error", "unsupported_by_azure"):
            yield f"answered {self.answer.status_code} {self.answer.text}"
        if f"{self.row.method} {self.request.path.partition('?')[0]}" not in error["message"] or {*error} != {
            "message",
            "type",
            "param",
            "code",
        }:
            yield f"said {error}"

    def _translated(self) -> Iterator[str]:
        if not self.answer.is_success:
            yield f"answered {self.answer.status_code} {self.answer.text}"
        if len(self.arrived) != 1:
            yield f"{len(self.arrived)} requests arrived"
            return
        arrived = self.arrived[0]
        path, version = self.row.at_azure(self.version)
        deployed = "{deployment}" in path
        names = dict(models_in(self.request.body)) or {"": self.request.values.get("engine", "")}
        deployment = f"azure-{next(iter(names.values()))}"
        expected = path.format(**self.request.values, deployment=deployment)
        if (arrived.method, arrived.bare_path.replace("%3A", ":")) != (self.row.method, expected):
            yield f"{arrived.method} {arrived.bare_path} is not {self.row.method} {expected}"
        query = {name: values for name, values in arrived.query.items() if name != "beta"}
        if query != ({"api-version": [version]} if version else {}):
            yield f"the query is {query}"
        if ("beta=true" in self.row.path) != ("beta" in arrived.query):
            yield "the client's own query is not kept"
        if (arrived.header("api-key"), arrived.header("authorization")) != (self.key, None):
            yield "the key did not come as api-key"
        if not self.native:
            yield from self._undocumented(path, version or "v1")
        yield from self._body(arrived, deployed=deployed)

    def _body(self, arrived: Received, *, deployed: bool) -> Iterator[str]:
        """The models are the deployments, and nothing else has changed."""
        before, after = self.request.body, arrived.body
        if before is None:
            if after:
                yield f"a body came: {after!r}"
            return
        got: Any = forms.parse(str(arrived.header("content-type")), after) if self.request.multipart else json.loads(after)
        sent: Any = forms.parse(*encoded(self.request)) if self.request.multipart else before
        mapped = not deployed and not self.row.path.removeprefix("/v1").startswith(BASE_MODELS)
        if self.row.model == "path" and not deployed:
            sent = {"model": self.request.values["engine"], **sent}
        for one, other in ((sent, got),) if not self.request.multipart else ((sent.fields, got.fields), (sent.uploads, got.uploads)):
            renamed = {place: f"azure-{name}" if mapped else name for place, name in models_in(one)}
            if renamed != dict(models_in(other)):
                yield f"models are {dict(models_in(other))}"
            if with_model(one, "") != with_model(other, ""):
                yield f"the body is {other}"

    def _undocumented(self, path: str, version: str) -> Iterator[str]:
        """Azure's own documents must have the operation, where they have its family and did not end before it came."""
        kind = "v1" if version == "v1" else "preview" if version.endswith("-preview") else "ga"
        name, has = azure_document(kind)
        place = re.sub(r"{.*?}", "{}", path.removeprefix("/openai").removeprefix("/v1"))
        family = place.split("/")[1] in {other.split("/")[1] for _, other in has}
        expected = in_document(self.row) if has and kind == "v1" else family and (kind == "ga" or self.row.preview <= name)
        if expected and (self.row.method, place) not in has:
            yield f"{self.row.method} {place} is not in {name}"


@cache
def entries() -> dict[str, Any]:
    return {str(operations.condensed(entry)): entry for entry in operations.load("api_map.json")}


def in_document(row: Row) -> bool:
    """Does the map say that the operation is in Azure's v1 document?"""
    status = str(entries()[str(row)]["azure_v1_status"])
    return status.startswith("ga_spec") or "was in GA spec" in status


def encoded(request: Request) -> tuple[str, bytes]:
    """Content type and bytes of a form."""
    fields = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in request.body.items() if not isinstance(value, bytes)
    }
    files: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    files += [(name, ("a.bin", value)) for name, value in request.body.items() if isinstance(value, bytes)]
    made = httpx.Request("POST", "http://x", files=files, headers={"content-type": "multipart/form-data; boundary=--bound"})
    return made.headers["content-type"], made.read()


@pytest.fixture(scope="module")
def everything() -> Iterator[Simulator]:
    """An Azure that has every model deployed, under names that are not OpenAI's."""
    with Simulator(deployments={f"azure-{model}": deployed for model, deployed in MODELS.values()}) as azure:
        yield azure


def asked(row: Row, version: str, azure: Simulator, client: httpx.Client, *, native: bool = False) -> Asked:
    request = example(row)
    azure.reset()
    headers = {"authorization": f"Bearer {azure.key}", "openai-organization": "org-1"}
    content: Any = None
    if request.body is not None:
        kind, content = encoded(request) if request.multipart else ("application/json", json.dumps(request.body).encode())
        headers["content-type"] = kind
    path = azures_own(row, version, request) if native else request.path
    answer = client.request(row.method, path, content=content, headers=headers)
    return Asked(request, answer, azure.requests, row, version, azure.key, native)


def azures_own(row: Row, version: str, request: Request) -> str:
    """What a client that speaks Azure's API asks for."""
    path, version = row.at_azure(version)
    model = next((name for _, name in models_in(request.body)), "")
    query = [*(["beta=true"] if "beta=true" in row.path else []), *([f"api-version={version}"] if version else [])]
    return path.format(**request.values, deployment=model) + ("?" if query else "") + "&".join(query)


def talked(row: Row, azure: Simulator, proxy: Mitmdump) -> Iterator[str]:
    """The faults of a WebSocket session: the same with both settings, since the dated GA API has no WebSockets."""
    path = row.path.replace("{session_id}", "live_1")
    model = first(MODELS, path.removeprefix("/v1"))[0]
    azure.reset()
    url = f"{proxy.url}{path}{f'?model={model}' if row.model == 'query' else ''}".replace("http", "ws", 1)
    start = {"type": "session.start", "session": {"model": model}}
    frame = {"/v1/responses": {"type": "response.create", "model": model, "input": "hi"}}.get(path, start if row.model == "json" else None)
    try:
        with connect(url, additional_headers={"authorization": f"Bearer {azure.key}"}, open_timeout=PATIENCE) as connection:
            if frame:
                connection.send(json.dumps(frame))
            heard = json.loads(connection.recv(timeout=PATIENCE)) if row.model != "-" else {"type": "nothing"}
    except (WebSocketException, TimeoutError) as error:
        yield f"no conversation: {error}"
        return
    arrived = azure.wait_for_request()
    assert arrived.done.wait(PATIENCE)
    query = {"model": [f"azure-{model}"]} if row.model == "query" else {}
    expected = (row.at_azure("v1")[0].replace("{session_id}", "live_1"), query, azure.key)
    if expected != (arrived.bare_path, arrived.query, arrived.header("api-key")):
        yield f"{arrived.path} was asked for"
    if (
        frame
        and [{"/model": f"azure-{model}"}, {"/session/model": f"azure-{model}"}].count(dict(models_in(json.loads(arrived.frames[0])))) != 1
    ):
        yield f"the frame is {arrived.frames[0]!r}"
    if heard["type"] == "error" or any(name != model for _, name in models_in(heard)):
        yield f"the answer is {heard}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["2024-10-21", "v1"])
def test_every_operation_arrives_or_is_answered(
    version: str, everything: Simulator, proxy: Proxies, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever OpenAI has is where Azure has it, with key, version and deployment, or is refused in OpenAI's shape by its name."""
    through = proxy(azure_openai_endpoint=everything.http_url, azure_openai_apiversion=version, azure_openai_model_mapper=MAPPER)
    failed, translated, rows = {}, 0, operations.rows()

    with httpx.Client(base_url=through.url, trust_env=False, timeout=PATIENCE) as client:
        for row in rows:
            problems = talked(row, everything, through) if row.method == "WS" else asked(row, version, everything, client).problems()
            if found := list(problems):
                failed[str(row)] = found
            elif row.handled_by == "azure":
                translated += 1

    with capsys.disabled():
        counted = {
            "operations": len(rows),
            "translated": translated,
            "answered": len(rows) - translated - len(failed),
            "failed": len(failed),
        }
        print(f"\n{version:>12}  " + "  ".join(f"{count} {name}" for name, count in counted.items()))  # noqa: T201 - a person wants to see it
    assert {} == failed


@pytest.mark.timeout(600)
@pytest.mark.parametrize("configured", ["2024-10-21", "v1"])
@pytest.mark.parametrize("version", ["2024-10-21", "2025-04-01-preview", "v1"])
def test_azure_s_own_paths_pass(version: str, configured: str, everything: Simulator, proxy: Proxies) -> None:
    """A client of Azure's own API keeps its form and version, whatever the settings; key and deployments change as for other clients."""
    through = proxy(azure_openai_endpoint=everything.http_url, azure_openai_apiversion=configured, azure_openai_model_mapper=MAPPER)
    rows = [row for row in operations.rows() if row.handled_by == "azure" and row.method != "WS" and "/engines/" not in row.path]

    with httpx.Client(base_url=through.url, trust_env=False, timeout=PATIENCE) as client:
        found = {str(row): list(asked(row, version, everything, client, native=True).problems()) for row in rows}

    assert {} == {name: problems for name, problems in found.items() if problems}


@pytest.mark.skipif(not operations.FOLDER.exists(), reason="the map does not lie beside the repository")
def test_the_operations_are_the_map_s() -> None:
    """The list is the map's, row by row, so nothing that OpenAI has is missing."""
    assert [operations.condensed(entry) for entry in operations.load("api_map.json")] == operations.rows()
