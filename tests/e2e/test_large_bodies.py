"""Bodies that are larger than the proxy may grow."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.processes import PATIENCE, only_http2
from support.sink import MB, Sink, pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Proxies
    from support.processes import Mitmdump

LARGE = 200 * MB
BOUND = 40 * MB
FORM = {"content-type": "multipart/form-data; boundary=b", "authorization": "Bearer client"}
END = b"\r\n--b--\r\n"


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


def client(way: str, proxy: Mitmdump) -> httpx.Client:
    ways: dict[str, dict[str, Any]] = {
        "http": {"base_url": proxy.url},
        "h2": {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True},
        "CONNECT": {"base_url": "https://api.openai.com", "verify": ssl.create_default_context(cafile=proxy.ca), "proxy": proxy.url},
    }
    return httpx.Client(timeout=PATIENCE, trust_env=False, **ways[way])


def head(name: str, *, filename: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()


def sized(*parts: bytes | int) -> tuple[dict[str, str], Iterator[bytes]]:
    """A body with its length; a number is so many bytes of a file."""
    length = sum(part if isinstance(part, int) else len(part) for part in parts)
    return {**FORM, "content-length": str(length)}, chunks(*parts)


def chunks(*parts: bytes | int) -> Iterator[bytes]:
    for part in parts:
        yield from pattern(part) if isinstance(part, int) else [part]


def sha256(*parts: bytes | int) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(*parts):
        digest.update(chunk)
    return digest.hexdigest()


class Memory:
    """How far a process grew."""

    def __init__(self, proxy: Mitmdump) -> None:
        self._proc = Path(f"/proc/{proxy.pid}")
        (self._proc / "clear_refs").write_text("5")  # forget the peak
        self._before = self._read("VmRSS")

    def growth(self) -> int:
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", (self._proc / "status").read_text())
        assert found
        return int(found[1]) * 1024


FILE = (head("purpose"), b"assistants\r\n", head("file", filename="large.bin"), LARGE, END)
AUDIO_LAST = (head("file", filename="a.mp3"), LARGE, b"\r\n" + head("model"), b"whisper-1", END)


@pytest.mark.parametrize("way", ["http", "h2", "CONNECT"])
def test_a_large_file_is_uploaded_in_little_memory(way: str, sink: Sink, proxy: Proxies) -> None:
    """Byte for byte, and with the length that the client gave, while the process hardly grows."""
    through = proxy(azure_openai_endpoint=sink.url)
    headers, body = sized(*FILE)
    with client(way, through) as http:
        http.get("/v1/models", headers=FORM)
        memory = Memory(through)
        answer = http.post("/v1/files", headers=headers, content=body)
        growth = memory.growth()

    taken = sink.wait()
    assert (200, sha256(*FILE)) == (answer.status_code, taken.sha256)
    assert ("/openai/files?api-version=2024-10-21", headers["content-length"]) == (taken.path, taken.headers["content-length"])
    assert "client" == taken.headers["api-key"]
    assert growth < BOUND


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_model_that_comes_last_is_mapped_on_the_way(way: str, sink: Sink, proxy: Proxies) -> None:
    """The dated path would need it first, so it goes to v1; its length is not known before its end."""
    through = proxy(azure_openai_endpoint=sink.url)
    with client(way, through) as http:
        http.get("/v1/models", headers=FORM)
        memory = Memory(through)
        headers, body = sized(*AUDIO_LAST)
        answer = http.post("/v1/audio/transcriptions", headers=headers, content=body)
        growth = memory.growth()

    taken = sink.wait()
    expected = (*AUDIO_LAST[:3], b"whisper", END)
    assert (200, sha256(*expected)) == (answer.status_code, taken.sha256)
    assert ("/openai/v1/audio/transcriptions", "chunked", None) == (
        taken.path,
        taken.headers["transfer-encoding"],
        taken.headers.get("content-length"),
    )
    assert growth < BOUND


@pytest.mark.parametrize(
    "version, path, model",
    [
        ("2024-10-21", "/openai/deployments/whisper/audio/transcriptions?api-version=2024-10-21", b"whisper-1"),
        ("v1", "/openai/v1/audio/transcriptions", b"whisper"),
    ],
)
def test_a_model_that_comes_early_decides_the_path(version: str, path: str, model: bytes, sink: Sink, proxy: Proxies) -> None:
    """The dated form takes the body as it is, v1 with the deployment's name and the length that it makes."""
    parts = (head("model"), b"whisper-1", b"\r\n" + head("file", filename="a.mp3"), 5 * MB, END)
    headers, body = sized(*parts)
    with client("http", proxy(azure_openai_endpoint=sink.url, azure_openai_apiversion=version)) as http:
        answer = http.post("/v1/audio/transcriptions", headers=headers, content=body)

    taken = sink.wait()
    assert (200, path, sha256(parts[0], model, *parts[2:])) == (answer.status_code, taken.path, taken.sha256)
    assert str(taken.size) == taken.headers["content-length"]


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_body_without_a_length_is_framed(way: str, sink: Sink, proxy: Proxies) -> None:
    """Chunks over HTTP/1.1 and frames over HTTP/2 are chunks at Azure; empty pieces are no end."""
    parts = (head("file", filename="x"), 3 * MB, END)
    with client(way, proxy(azure_openai_endpoint=sink.url)) as http:
        answer = http.post("/v1/files", headers=FORM, content=chunks(*parts))
        again = http.post("/v1/files", headers=FORM, content=chunks(*parts))

    assert (200, 200) == (answer.status_code, again.status_code)
    assert (sha256(*parts), "chunked") == (sink.wait().sha256, sink.wait().headers["transfer-encoding"])
    assert sha256(*parts) == sink.wait(2).sha256


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_body_goes_on_before_its_end(way: str, sink: Sink, proxy: Proxies) -> None:
    """Azure has the first of it while the client still holds back the rest."""
    arrived: list[bool] = []

    def body() -> Iterator[bytes]:
        yield from chunks(head("file", filename="x"), 2 * MB)
        arrived.append(sink.wait().began.wait(PATIENCE))
        yield END

    with client(way, proxy(azure_openai_endpoint=sink.url)) as http:
        answer = http.post("/v1/files", headers=FORM, content=body())

    assert ([True], 200) == (arrived, answer.status_code)


def test_a_small_body_keeps_its_length(sink: Sink, proxy: Proxies) -> None:
    """It is held, changed as a whole and sent with its own length."""
    with client("http", proxy(azure_openai_endpoint=sink.url, azure_openai_apiversion="v1")) as http:
        http.post("/v1/audio/transcriptions", headers=FORM, content=chunks(head("model"), b"whisper-1", END))

    taken = sink.wait()
    assert (head("model") + b"whisper" + END, str(taken.size)) == (taken.start, taken.headers["content-length"])


def line(model: str) -> bytes:
    return json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": model}}).encode() + b"\n"


@pytest.mark.parametrize("count", [3, 30_000], ids=["small", "large"])
def test_a_batch_s_lines_are_mapped_on_the_way(count: int, sink: Sink, proxy: Proxies) -> None:
    """By the option, held or not."""
    through = proxy(azure_openai_endpoint=sink.url, azure_openai_map_batch_files=True, azure_openai_model_mapper="chat=prod")
    start = head("purpose") + b"batch\r\n" + head("file", filename="b.jsonl")
    with client("http", through) as http:
        answer = http.post("/v1/files", headers=FORM, content=chunks(start, line("chat") * count, END))

    assert (200, sha256(start, line("prod") * count, END)) == (answer.status_code, sink.wait().sha256)


def test_a_large_file_is_downloaded_in_little_memory(sink: Sink, proxy: Proxies) -> None:
    """Byte for byte, while the process hardly grows."""
    sink.size = LARGE
    through = proxy(azure_openai_endpoint=sink.url)
    digest = hashlib.sha256()
    with client("http", through) as http:
        http.get("/v1/models", headers=FORM)
        memory = Memory(through)
        with http.stream("GET", "/v1/files/file-1/content", headers={"authorization": "Bearer client"}) as answer:
            for data in answer.iter_bytes():
                digest.update(data)
        growth = memory.growth()

    assert sha256(LARGE) == digest.hexdigest()
    assert growth < BOUND


# Errors


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_body_without_a_key_is_refused_at_its_beginning(way: str, sink: Sink, proxy: Proxies) -> None:
    """The client gets the refusal while it still sends; nothing is forwarded, and the next request is served."""
    headers, body = sized(head("file", filename="x"), 3 * MB, END)
    headers.pop("authorization")
    with client(way, proxy(azure_openai_endpoint=sink.url)) as http:
        refused = http.post("/v1/files", headers=headers, content=body)
        answer = http.post("/v1/files", headers=FORM, content=chunks(head("file"), END))

    assert (401, "invalid_api_key", 200) == (refused.status_code, refused.json()["error"]["code"], answer.status_code)
    assert len(head("file") + END) == sink.wait().size


@pytest.mark.parametrize("way", ["http", "h2"])
def test_azure_s_refusal_in_the_middle_reaches_the_client(way: str, sink: Sink, proxy: Proxies) -> None:
    """In OpenAI's shape, like any other."""
    sink.refuse = 401
    headers, body = sized(head("file", filename="x"), 20 * MB, END)
    with client(way, proxy(azure_openai_endpoint=sink.url)) as http:
        refused = http.post("/v1/files", headers=headers, content=body)

    assert (401, "invalid_api_key") == (refused.status_code, refused.json()["error"]["code"])


@pytest.mark.parametrize("way", ["http", "h2"])
def test_no_way_to_azure_is_told(way: str, sink: Sink, proxy: Proxies) -> None:
    """A body that goes on and has nowhere to go is answered like one that was held."""
    headers, body = sized(head("file", filename="x"), 3 * MB, END)
    with client(way, proxy(azure_openai_endpoint="http://127.0.0.1:9")) as http:
        refused = http.post("/v1/files", headers=headers, content=body)
        again = http.get("/v1/models", headers=FORM)

    assert (502, "upstream_unreachable", 200) == (refused.status_code, refused.json()["error"]["code"], again.status_code)


def test_a_large_json_body_is_held(sink: Sink, proxy: Proxies) -> None:
    """Its model may stand at its end; and the limit is for such bodies, not for those that go on."""
    through = proxy(azure_openai_endpoint=sink.url, azure_openai_max_body="4m")
    text = "x" * (2 * MB)
    headers, body = sized(head("file", filename="x"), 6 * MB, END)
    with client("http", through) as http:
        chat = http.post("/v1/chat/completions", headers=FORM | {"content-type": "application/json"}, json={"x": text, "model": "gpt-4o"})
        large = http.post("/v1/chat/completions", headers={"authorization": "Bearer client"}, json={"x": text * 3, "model": "gpt-4o"})
        file = http.post("/v1/files", headers=headers, content=body)

    assert "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21" == sink.wait().path
    assert (200, 413, 200) == (chat.status_code, large.status_code, file.status_code)


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_large_json_body_is_in_memory_once(way: str, sink: Sink, proxy: Proxies) -> None:
    """One with a length takes 1.5 times its size at most."""
    through = proxy(azure_openai_endpoint=sink.url)
    parts = [b'{"model":"gpt-4o","user":"', *[b"x" * MB] * (LARGE // MB), b'"}']
    headers = {"authorization": "Bearer client", "content-type": "application/json", "content-length": str(sum(map(len, parts)))}
    with client(way, through) as http:
        http.get("/v1/models", headers=FORM)
        memory = Memory(through)
        answer = http.post("/v1/chat/completions", headers=headers, content=iter(parts))
        growth = memory.growth()

    assert (200, hashlib.sha256(b"".join(parts)).hexdigest()) == (answer.status_code, sink.wait().sha256)
    assert growth < 1.5 * LARGE


def test_who_asks_first_may_go_on(sink: Sink, proxy: Proxies) -> None:
    """`Expect: 100-continue` is answered by the proxy, and Azure is not asked again."""
    headers, body = sized(head("file", filename="x"), 2 * MB, END)
    with client("http", proxy(azure_openai_endpoint=sink.url)) as http:
        answer = http.post("/v1/files", headers=headers | {"expect": "100-continue"}, content=body)

    assert (200, None) == (answer.status_code, sink.wait().headers.get("expect"))


def test_mitmproxy_s_own_streaming_does_not_pass_us_by(sink: Sink, proxy: Proxies) -> None:
    """With stream_large_bodies a request is translated all the same."""
    headers, body = sized(head("file", filename="x"), 2 * MB, END)
    with client("http", proxy("--set", "stream_large_bodies=10k", azure_openai_endpoint=sink.url)) as http:
        known = http.post("/v1/files", headers=headers, content=body)
        unknown = http.post("/v1/chat/completions", headers=FORM, content=iter([b'{"model":"m","x":"', b"x" * 100_000, b'"}']))

    assert (200, 200) == (known.status_code, unknown.status_code)
    assert ["/openai/files?api-version=2024-10-21", "/openai/deployments/m/chat/completions?api-version=2024-10-21"] == [
        sink.wait(n).path for n in (1, 2)
    ]
