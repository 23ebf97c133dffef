"""Rewriting of multipart forms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.api import large_bodies, upload_rewriting
from azure_openai_proxy.api.operation import recognise
from azure_openai_proxy.formats.json_scan import LARGE

TYPE = {"content-type": "multipart/form-data; boundary=b"}
NAMES = {"whisper-1": "whisper", "gpt": "prod"}


def form(*fields: tuple[str, str]) -> bytes:
    return (
        b"".join(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields)
        + b"--b--\r\n"
    )


def sent(path: str, content: bytes, *, start: bytes | None = None, **more: Any) -> bytes | None:
    """Return the rewritten form; None if nothing changes."""
    call = recognise("POST", path, TYPE, content if start is None else start)
    assert call
    options = {"in_path": False, "batch_lines": 0} | more
    rewriter = upload_rewriting.rewriter(call, TYPE, lambda name: NAMES.get(name, name), **options)
    return rewriter.feed(content) + rewriter.end() if rewriter else None


AUDIO = form(("file", "whisper-1"), ("model", "whisper-1"), ("model", "whisper-1"))


def test_the_first_model_is_renamed() -> None:
    """Only the first `model` is renamed, so the corrected content-length is right."""
    assert form(("file", "whisper-1"), ("model", "whisper"), ("model", "whisper-1")) == sent("/v1/audio/transcriptions", AUDIO)


def test_another_model_is_blanked() -> None:
    """The form of a stream has one model, whichever field the parser takes, and keeps its length."""
    odd = form(("x", "y")).replace(b'name="x"', b'name="x"; name="model"').removesuffix(b"--b--\r\n")
    content = odd + form(("model", "gpt"), ("model", "gpt"), ("model", "other"), ("file", "other"))
    assert odd.replace(b"\ny", b"\n-") + form(("model", "prod"), ("model", "gpt"), ("model", "-----"), ("file", "other")) == sent(
        "/v1/audio/transcriptions", content, start=form(("model", "gpt"))
    )
    assert form(("model", "same"), ("model", "-----")) == sent(
        "/v1/audio/transcriptions", form(("model", "same"), ("model", "other")), start=form(("model", "same")), streamed=True
    )


def test_a_model_that_has_not_come_yet_is_renamed() -> None:
    """The model is renamed if it arrives after the beginning of the form."""
    assert b'name="model"\r\n\r\nwhisper\r\n' in (sent("/v1/audio/transcriptions", AUDIO, start=AUDIO[:60]) or b"")


@pytest.mark.parametrize(
    "path, content, more",
    [
        ("/v1/audio/transcriptions", AUDIO, {"in_path": True}),
        ("/v1/audio/transcriptions", form(("model", "other")), {}),
        ("/v1/files", form(("purpose", "batch"), ("file", "{}")), {}),
        ("/v1/uploads/u/parts", form(("data", "x")), {"batch_lines": 100}),
    ],
    ids=["in the path", "the same name", "a file", "a part"],
)
def test_a_form_without_changes_has_no_rewriter(path: str, content: bytes, more: dict[str, Any]) -> None:
    """A form without changes has no rewriter."""
    assert None is sent(path, content, **more)


def test_no_form_has_no_rewriter() -> None:
    """A body without a boundary has no rewriter."""
    call = recognise("POST", "/v1/files", {})
    assert call
    assert None is upload_rewriting.rewriter(call, {}, str, in_path=False, batch_lines=1)


@pytest.mark.parametrize(
    "session, renamed",
    [
        ('{"type":"realtime","model":"gpt","instructions":"é"}', '{"type":"realtime","model":"prod","instructions":"é"}'),
        ('{"model":', '{"model":'),
        ('{"model":"other"}', '{"model":"other"}'),
        ('{"audio":{"input":{"transcription":{"model":"gpt"}}}}', '{"audio":{"input":{"transcription":{"model":"prod"}}}}'),
        ('{"input_audio_transcription":{"model":"gpt"},"model":"gpt"}', '{"input_audio_transcription":{"model":"prod"},"model":"prod"}'),
    ],
)
def test_a_call_s_session_names_its_model_in_json(session: str, renamed: str) -> None:
    """The model in the JSON of a form's `session` field is renamed."""
    assert form(("sdp", "v=0"), ("session", renamed)) == sent("/v1/realtime/calls", form(("sdp", "v=0"), ("session", session)))


def line(model: str) -> str:
    return json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": model, "messages": []}})


BATCH = "\n".join([line("gpt"), line("other"), "", line("gpt")])


@pytest.mark.parametrize("fields", [[("purpose", "batch"), ("file", BATCH)], [("file", BATCH), ("purpose", "batch")], [("file", BATCH)]])
def test_a_batchs_lines_are_mapped(fields: list[tuple[str, str]]) -> None:
    """With the option, the models in a batch file are mapped with `purpose` at any position; all other bytes stay."""
    assert form(*((name, value.replace('"gpt"', '"prod"')) for name, value in fields)) == sent("/v1/files", form(*fields), batch_lines=1000)


def test_a_file_for_another_purpose_is_left_alone() -> None:
    """A file for another purpose is unchanged."""
    content = form(("purpose", "fine-tune"), ("file", BATCH))
    assert content == sent("/v1/files", content, batch_lines=1000)


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"gpt"}',
        '{"custom_id":1,"model":"gpt"}',
        '{"custom_id":1,"body":{"model":"gpt"}',
        '["custom_id", "model"]',
        '{"custom_id":1}',
    ],
    ids=["no batch's", "elsewhere", "cut", "a list", "no model"],
)
def test_another_line_is_left_alone(text: str) -> None:
    """A line that is not a request of a batch is unchanged."""
    assert text.encode() == upload_rewriting.batch_line(text.encode(), lambda name: NAMES.get(name, name))


IMAGE = "A" * LARGE


@pytest.mark.parametrize(
    "line, renamed",
    [
        (f'{{"custom_id":"1","body":{{"image":"{IMAGE}","model":"m","note":"{IMAGE}\\n"}}}}', True),
        (f'{{"custom_id":"1","model":"m","body":"{IMAGE}"}}', False),
        (f'["custom_id","model","m","{IMAGE}"]', False),
        (f'{{"custom_id":"1","body":{{"model":"m","image":"{IMAGE}}}}}', False),
        (f'{{"custom_id":"1","body":{{"model":"m","image":"{IMAGE}"}}', False),
        (f'{{"custom_id":"1","body":{{"model":"m","input":[{"1," * LARGE}1]}}}}', False),
        (f'{{"custom_id":"1","body":{{"model":"m","input":[{'"",' * LARGE}1]}}}}', False),
    ],
    ids=["images", "elsewhere", "a list", "a string without end", "an object without end", "many numbers", "many strings"],
)
def test_a_large_line_of_a_batch(line: str, renamed: bool) -> None:
    """A large line is not parsed as a whole; its model is renamed if the line is short without its long strings."""
    after = upload_rewriting.batch_line(line.encode(), str.upper)
    assert (line.replace('"model":"m"', '"model":"M"') if renamed else line).encode() == after


def test_a_large_line_is_not_parsed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large line of any length is never parsed at once."""
    sizes: list[int] = []
    loads = json.loads

    def counted(text: bytes) -> object:
        sizes.append(len(text))
        return loads(text)

    monkeypatch.setattr(json, "loads", counted)
    line = f'{{"custom_id":"1","body":{{"image":"{IMAGE * 8}","model":"m"}}}}'.encode()
    assert b'"M"' in upload_rewriting.batch_line(line, str.upper)
    assert max(sizes) <= large_bodies.SHORT
