"""Every method of the newest openai SDK through a real mitmdump; each response is valid for the SDK's own types."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
from openai import OpenAI
from openai._legacy_response import HttpxBinaryResponseContent
from openai._resource import SyncAPIResource
from openai.pagination import SyncCursorPage

from support import arguments, operations
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure_simulator import Simulator
    from conftest import Proxies

# What a family of methods runs on, as OpenAI calls it. The first that fits counts.
MODELS = {
    "completions.": "gpt-35-turbo-instruct",
    "embeddings.": "text-embedding-3-small",
    "audio.speech.": "tts-1",
    "audio.": "whisper-1",
    "images.": "gpt-image-1",
    "videos.": "sora-2",
    "realtime.": "gpt-realtime",
    "live.": "gpt-live-1",
    "": "gpt-4o",
}
# What types do not say.
GIVEN: dict[str, dict[str, Any]] = {
    "embeddings.create": {"encoding_format": "float"},  # by itself the SDK asks for base64 and holds that against its types
    "responses.create": {"input": "hi"},
    "beta.responses.create": {"input": "hi"},
    "realtime.client_secrets.create": {"session": {"type": "realtime", "model": "gpt-realtime"}},
    "evals.create": {"testing_criteria": [{"type": "score_model", "model": "gpt-4o", "name": "x", "input": []}]},
    "webhooks.create": {"url": "https://example.com/hook"},
}
NO_OPERATION = re.compile(
    r".*\.(connect|stream|parse|unwrap|verify_\w+|wait_for_\w+|poll|\w+_poll|\w+_stream|upload_file_chunked|for_result)"
    r"|beta\.agents\.environments\.files\.(prepare|prepare_directory|upload)"
)
"""Built upon operations that have methods of their own, or not HTTP at all."""


class Method(NamedTuple):
    name: str  # `chat.completions.create`
    path: tuple[str, ...]

    def bound(self, client: OpenAI) -> Callable[..., Any]:
        found: Any = client
        for name in self.path:
            found = getattr(found, name)
        assert callable(found)
        bound: Callable[..., Any] = found
        return bound


def methods(resource: Any, path: tuple[str, ...] = ()) -> Iterator[Method]:
    """Every method of every resource, one below the other."""
    for name, member in inspect.getmembers(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        if isinstance(member, (property, cached_property)):
            below = getattr(resource, name)
            if isinstance(below, SyncAPIResource):
                yield from methods(below, (*path, name))
        elif path and inspect.isfunction(member):
            method = Method(".".join((*path, name)), (*path, name))
            if not NO_OPERATION.fullmatch(method.name):
                yield method


METHODS = sorted(methods(OpenAI(api_key="x")))


@pytest.fixture
def client(azure: Simulator, proxy: Proxies) -> Iterator[OpenAI]:
    through = proxy(azure_openai_apiversion="v1", azure_openai_model_mapper="gpt-4o=gpt-4o")
    with OpenAI(
        api_key=azure.key,
        admin_api_key=azure.key,
        base_url=f"{through.url}/v1",
        max_retries=0,
        timeout=PATIENCE,
        _strict_response_validation=True,
    ) as client:
        yield client


def call(client: OpenAI, method: Method, **more: Any) -> Any:
    bound = method.bound(client)
    model = next(model for start, model in MODELS.items() if method.name.startswith(start))
    return bound(**arguments.required(bound, {"model": model} | GIVEN.get(method.name, {}) | more))


def nobody_has(method: str, path: str) -> bool:
    """Whether the list says so."""
    fitting = [
        row
        for row in operations.rows()
        if row.method == method and re.fullmatch(re.sub(r"{.*?}", "[^/]+", row.path.partition("?")[0]), path)
    ]
    return bool(fitting) and any(row.handled_by == "unsupported" or row.path == "/v1/moderations" for row in fitting)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_of_the_sdk(method: Method, client: OpenAI, azure: Simulator) -> None:
    """It gets an object of its own type from Azure, or the error that Azure does not have the operation, which is true."""
    refused, result = outcome(client, method)

    if refused:
        request = refused.request
        assert "unsupported_by_azure" == refused.code
        assert nobody_has(request.method, request.url.path), f"{request.method} {request.url.path} is at Azure"
        assert [] == azure.requests
    else:
        assert result is None or validated(result)
        assert [] == [request.path for request in azure.requests if not request.path.startswith("/openai/")]


def outcome(client: OpenAI, method: Method) -> tuple[openai.NotFoundError | None, Any]:
    try:
        return None, call(client, method)
    except openai.NotFoundError as error:
        return error, None


def validated(result: Any) -> bool:
    """The SDK has validated everything except lists of pages, bytes and texts; those are read completely here."""
    if isinstance(result, HttpxBinaryResponseContent):
        return bool(result.read())
    if isinstance(result, SyncCursorPage):
        return len(list(result)) > 0
    return bool(result)


def test_the_walk_finds_what_there_is() -> None:
    """The search finds methods."""
    assert {"chat.completions.create", "admin.organization.users.list", "vector_stores.file_batches.cancel"} <= {it.name for it in METHODS}


STREAMS: dict[str, tuple[dict[str, Any], str]] = {
    "chat.completions.create": ({"messages": [{"role": "user", "content": "hi"}]}, "chat.completion.chunk"),
    "completions.create": ({"prompt": "hi"}, "text_completion"),
    "responses.create": ({"input": "hi"}, "response.completed"),
    "responses.retrieve": ({"response_id": "resp_1"}, "response.completed"),
    "images.generate": ({"prompt": "hi"}, "image_generation.completed"),
    "images.edit": ({"prompt": "hi", "image": b"png"}, "image_edit.completed"),
    "audio.transcriptions.create": ({"file": b"RIFF"}, "transcript.text.done"),
    "beta.threads.runs.create": ({"thread_id": "thread_1", "assistant_id": "asst_1"}, "thread.run.completed"),
    "beta.threads.create_and_run": ({"assistant_id": "asst_1"}, "thread.run.completed"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_the_sdk(name: str, client: OpenAI) -> None:
    """Each event is one of the SDK's own, and the last one says that all went well."""
    given, ends = STREAMS[name]
    client._strict_response_validation = name != "completions.create"  # its type forbids the null that OpenAI sends too

    events = list(call(client, Method(name, tuple(name.split("."))), **given, stream=True))

    last = events[-1]
    assert ends in {getattr(last, kind, None) for kind in ("type", "object", "event")}
