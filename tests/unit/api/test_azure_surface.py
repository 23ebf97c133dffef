"""The simulator's endpoints: every row of its table in every form, and the requests that it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from azure_simulator import Simulator, fields, forms
from azure_simulator.binary import BYTES, JSONL
from azure_simulator.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator.calls import Operation

UPLOAD = {"file": ("hello.wav", b"\r\n--\x00\xff", "audio/wav")}


class Sample(NamedTuple):
    """A valid body for an operation."""

    json: Any = None
    data: Any = None
    files: Any = None


SAMPLES = {
    "chat/completions": Sample({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}),
    "completions": Sample({"model": "gpt-35-turbo-instruct", "prompt": "hi"}),
    "embeddings": Sample({"model": "text-embedding-3-small", "input": "hi"}),
    "audio/speech": Sample({"model": "tts", "input": "hi", "voice": "alloy"}),
    "audio/transcriptions": Sample(data={"model": "whisper"}, files=UPLOAD),
    "audio/translations": Sample(data={"model": "whisper"}, files=UPLOAD),
    "images/generations": Sample({"model": "gpt-image-1", "prompt": "a corgi"}),
    "images/edits": Sample(data={"model": "gpt-image-1", "prompt": "a corgi"}, files={"image[]": ("a.png", b"png")}),
    "responses": Sample({"model": "gpt-4o", "input": "hi"}),
    "responses/compact": Sample({"model": "gpt-4o", "input": "hi"}),
    "files": Sample(data={"purpose": "batch"}, files=UPLOAD),
    "uploads/{upload_id}/parts": Sample(files={"data": b"part"}),
    "videos": Sample({"model": "sora-2", "prompt": "a corgi"}),
}


@pytest.fixture(scope="module")
def azure() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def http(azure: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{azure.http_url}/openai", headers={"api-key": azure.key}, trust_env=False, timeout=10) as client:
        yield client


def ask(http: httpx.Client, row: Operation, path: str) -> httpx.Response:
    sample = SAMPLES.get(row.path) if row.method == "POST" else None
    if sample is None:
        sample = Sample({} if row.body == "json" else None)
    return http.request(row.method, path, json=sample.json, data=sample.data, files=sample.files)


def place(row: Operation, form: str) -> str:
    path = "/".join("x" if part[0] == "{" else part for part in row.path.split("/"))
    if form == "v1":
        return f"/v1/{path}"
    sample = SAMPLES.get(row.path) if row.method == "POST" else None
    deployment = sample and (sample.json or sample.data)["model"] if row.api.dated == "deployed" else ""
    return f"/deployments/{deployment}/{path}?api-version={form}" if deployment else f"/{path}?api-version={form}"


def case(row: Operation) -> str:
    return f"{row.method} {row.path}"


@pytest.mark.parametrize("row", OPERATIONS, ids=case)
def test_an_operation_answers_where_azure_has_it_and_nowhere_else(row: Operation, http: httpx.Client) -> None:
    """An operation succeeds in v1 and in each dated version that the row names; other versions answer 404."""
    forms = {"v1": row.api.v1, **{version: version in row.api.versions for version in (*fields.VERSIONS, "2023-03-15-preview")}}

    answers = {form: ask(http, row, place(row, form)).status_code for form in forms}

    assert {form: (201 if row.path == "realtime/calls" else 200) if there else 404 for form, there in forms.items()} == answers


@pytest.mark.parametrize(
    "row",
    [row for row in OPERATIONS if row.api.v1 and row.models and row.body == "json" and (row.fields or row.models != ("model",))],
    ids=case,
)
def test_a_model_that_is_not_deployed_is_not_found(row: Operation, http: httpx.Client) -> None:
    """A model in a JSON body must be a deployment, at every place."""
    sample = dict(SAMPLES.get(row.path, Sample({})).json)
    inner = sample
    *outer, last = row.models[0].split(".")
    for name in outer:
        if name == "*":
            continue
        inner[name] = [{}] if "*" in outer and name == outer[0] else {}
        inner = inner[name][0] if isinstance(inner[name], list) else inner[name]
    inner[last] = "gpt-nobody"

    answer = http.request(row.method, place(row, "v1"), json=sample)

    assert (404, "DeploymentNotFound") == (answer.status_code, answer.json()["error"]["code"])


def test_the_first_api_s_list_of_deployments(azure: Simulator, http: httpx.Client) -> None:
    """Only one old version lists the deployments."""
    answer = http.get("/deployments?api-version=2023-03-15-preview").json()

    assert list(azure.deployments) == [item["id"] for item in answer["data"]]


def test_lists_have_pages(http: httpx.Client) -> None:
    """`limit` and `after` page a list as at Azure."""
    first, second, last = (http.get(f"/v1/files{query}").json() for query in ("?limit=1", "?limit=1&after=file-1", "?after=file-2"))

    assert (["file-1"], True) == ([item["id"] for item in first["data"]], first["has_more"])
    assert (["file-2"], False) == ([item["id"] for item in second["data"]], second["has_more"])
    assert ([], None) == (last["data"], last["first_id"])


@pytest.mark.parametrize("limit", ["null", "-1", "1.5", ""])
def test_a_limit_is_a_number(limit: str, http: httpx.Client) -> None:
    """A limit that is not a number is refused."""
    assert 400 == http.get(f"/v1/files?limit={limit}").status_code


def test_objects_have_ids_of_the_path_and_members_of_the_body(http: httpx.Client) -> None:
    """An object has the ids of the path and the members of the body."""
    message = http.post("/v1/threads/thread_7/messages/msg_8", json={"metadata": {"a": "b"}, "other": 1}).json()

    assert ("msg_8", "thread_7", {"a": "b"}) == (message["id"], message["thread_id"], message["metadata"])
    assert "other" not in message


def test_an_upload_is_complete(http: httpx.Client) -> None:
    """A file's name and size, and a transcription's text, show that the upload is complete."""
    file = http.post("/v1/files", data={"purpose": "batch"}, files=UPLOAD).json()
    heard = http.post("/v1/audio/transcriptions", data={"model": "whisper"}, files=UPLOAD).json()

    assert ("hello.wav", 6, "batch") == (file["filename"], file["bytes"], file["purpose"])
    assert "hello.wav has 6 bytes" == heard["text"]


@pytest.mark.parametrize("format_, starts", [("text", "hello.wav"), ("srt", "1\n00:"), ("vtt", "WEBVTT"), ("verbose_json", '{"duration"')])
def test_transcriptions_have_formats(format_: str, starts: str, http: httpx.Client) -> None:
    """A transcription has the requested `response_format`."""
    answer = http.post("/v1/audio/transcriptions", data={"model": "whisper", "response_format": format_}, files=UPLOAD)

    assert starts == answer.text[: len(starts)]


@pytest.mark.parametrize(
    "path, sample, says",
    [
        ("audio/transcriptions", Sample({"model": "whisper"}), "no multipart form"),
        ("audio/transcriptions", Sample(data={"model": "whisper"}, files={"other": b""}), "Unrecognized request argument supplied: other"),
        ("audio/transcriptions", Sample(data={"model": "whisper", "file": "text"}, files={"prompt": b""}), "'file' is a required property"),
        ("audio/transcriptions", Sample(data={"model": "whisper", "response_format": "x"}, files=UPLOAD), "'x' is not one of"),
        ("audio/transcriptions", Sample(data={"model": "whisper"}, files={"prompt": b"x"}), "'file' is a required property"),
        ("audio/transcriptions", Sample(files=UPLOAD), "'model' is a required property"),
        ("audio/speech", Sample({"model": "tts", "input": "hi", "voice": "x", "response_format": "x"}), "'x' is not one of"),
        ("images/edits", Sample(data={"model": "gpt-image-1", "prompt": "x", "image": "x"}, files={"mask": b""}), "'image' is a required"),
        ("responses", Sample({"model": "gpt-4o", "input": "hi", "frequency_penalty": 1}), "Unknown parameter: 'frequency_penalty'."),
        ("responses", Sample({"model": "gpt-4o", "input": [{"role": "user", "metadata": {}}]}), "Unknown parameter: 'input[0].metadata'."),
        (
            "responses",
            Sample({"model": "gpt-4o", "input": "hi", "include": ["reasoning.encrypted_content"]}),
            "Encrypted content is not supported with this model.",
        ),
        ("responses", Sample({"model": "gpt-4o", "input": "hi", "stream_options": {}}), "'stream_options'"),
        ("responses", Sample({"model": "o3-mini", "input": "hi", "temperature": 0}), "'temperature' is not supported"),
        ("responses", Sample({"model": "tts", "input": "hi"}), "does not work with the specified model"),
        ("batches", Sample([]), "[] is not of type 'object'"),
        ("realtime/client_secrets", Sample({"session": "x"}), "'x' is not of type 'object'"),
        ("files", Sample(), None),
    ],
)
def test_an_invalid_body_is_refused(path: str, sample: Sample, says: str | None, http: httpx.Client) -> None:
    """Invalid bodies are refused with 400; an empty body only if a member is required."""
    answer = http.post(f"/v1/{path}", json=sample.json, data=sample.data, files=sample.files)

    assert (400 if says else 200) == answer.status_code
    assert (says or "") in answer.text


def test_realtime_on_v1_has_no_api_version(http: httpx.Client) -> None:
    """The GA paths of realtime answer 401 to any api-version."""
    answers = [http.post(f"/v1/realtime/client_secrets{query}", json={}).status_code for query in ("", "?api-version=preview")]

    assert [200, 401] == answers


def test_a_call_has_a_location(azure: Simulator, http: httpx.Client) -> None:
    """The response to a WebRTC call is SDP with the call's URL at Azure; the form contains the session's model as JSON."""
    session = (None, b'{"model":"gpt-realtime"}', "application/json")
    good = http.post("/v1/realtime/calls", files={"sdp": (None, b"v=0\r\n", "application/sdp"), "session": session})
    bad = http.post("/v1/realtime/calls", files={"session": (None, b'{"model":"nobody"}')})

    assert (201, f"{azure.http_url}/openai/v1/realtime/calls/rtc_1") == (good.status_code, good.headers["location"])
    assert "DeploymentNotFound" == bad.json()["error"]["code"]


def test_responses_stream_typed_events(http: httpx.Client) -> None:
    """Every event has a name and a number, and the responses in it have filter results."""
    answer = http.post("/v1/responses", json={"model": "gpt-4o", "input": [{"role": "user", "content": "hello"}], "stream": True})

    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in answer.text.strip().split("\n\n")]
    data = [json.loads(event["data"]) for event in events]
    assert [event["event"] for event in events] == [value["type"] for value in data]
    assert list(range(len(data))) == [value["sequence_number"] for value in data]
    assert "You said: hello" == "".join(value["delta"] for value in data if "delta" in value)
    assert ["prompt", "completion"] == [found["source_type"] for found in data[-1]["response"]["content_filters"]]
    assert data[-1]["response"]["output"] == [value["item"] for value in data if value["type"] == "response.output_item.done"]


def test_responses_do_more_than_answer(http: httpx.Client) -> None:
    """A background response is queued, a stored one can be streamed again, and a request without an input has an empty output."""
    queued = http.post("/v1/responses", json={"model": "gpt-4o", "background": True}).json()
    again = http.get("/v1/responses/resp_9?stream=true").text
    silent = http.post("/v1/responses", json={"model": "gpt-4o"}).json()

    assert ("queued", None) == (queued["status"], queued["usage"])
    assert "resp_9" in again
    assert "You said: " == silent["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    "path, sample, names",
    [
        ("audio/speech", Sample({**SAMPLES["audio/speech"].json, "stream_format": "sse"}), ["speech.audio.delta", "speech.audio.done"]),
        (
            "audio/transcriptions",
            Sample(data={"model": "whisper", "stream": "true"}, files=UPLOAD),
            ["transcript.text.delta", "transcript.text.done"],
        ),
        (
            "images/generations",
            Sample({**SAMPLES["images/generations"].json, "stream": True}),
            ["image_generation.partial_image", "image_generation.completed"],
        ),
    ],
)
def test_other_streams(path: str, sample: Sample, names: list[str], http: httpx.Client) -> None:
    """Speech, transcriptions and images stream events of their own types."""
    answer = http.post(f"/v1/{path}", json=sample.json, data=sample.data, files=sample.files)

    data = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n") if line.startswith("data: {")]
    assert names == list(dict.fromkeys(value["type"] for value in data))


def test_runs_stream(http: httpx.Client) -> None:
    """A thread's run streams named events and ends with [DONE]."""
    answer = http.post("/v1/threads/thread_1/runs", json={"assistant_id": "asst_1", "stream": True})

    assert "event: thread.run.created\n" == answer.text[:26]
    assert "event: done\ndata: [DONE]\n\n" == answer.text[-26:]


def test_downloads_are_bytes(http: httpx.Client) -> None:
    """Content is binary, except for the output of a batch."""
    files = [http.get(f"/v1/files/{id_}/content").content for id_ in ("file-1", "file-jsonl")]

    assert [BYTES, JSONL] == files


FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    "content_type, body",
    [
        ("", b""),
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        (FORM, b""),
        (FORM, b"--b\r\n"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--b'),
        (FORM, b"x--b--"),
        (FORM, b"--b\r\nContent-Type: text/plain\r\n\r\nb\r\n--b--"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="a"\r\n--b--'),
    ],
)
def test_an_invalid_form_is_refused(content_type: str, body: bytes) -> None:
    """A form without a boundary, names or an end is refused."""
    with pytest.raises(ValueError, match=r"form|end|name"):
        forms.parse(content_type, body)


def test_forms_are_read_as_they_are_written() -> None:
    """Fields are text, uploads are bytes with a name, and brackets in names are ignored."""
    head = (
        b'--b\r\ncontent-disposition: form-data; name="a[]"\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n'
    )
    form = forms.parse(FORM, head + b"Content-Type: a/b\r\n\r\n\r\n--c\r\n\r\n--b--\r\n")

    assert {"a": "1"} == form.fields
    assert forms.Upload("f", "x", b"\r\n--c\r\n") == form.upload("f")
    assert None is form.upload("a")
    assert {"a", "f"} == form.names
