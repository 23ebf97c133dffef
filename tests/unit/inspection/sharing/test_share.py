"""Threads in the formats to share."""

from __future__ import annotations

import gc
import html.parser
import json
import re
from typing import Any

import pytest
from mitmproxy import flow as flows
from pydantic import TypeAdapter

from azure_openai_proxy.inspection.sharing import document, jsonl, plain, redact
from azure_openai_proxy.inspection.sharing import html as html_page
from azure_openai_proxy.inspection.sharing.share import FORMATS, MEDIA_TYPES, share
from azure_openai_proxy.inspection.threads.store import Threads
from support.conversations import Json, assistant, chat, failed, flow, responses, tool_call, user
from support.planted import OPTIONS, PLANTED

SYSTEM = {"role": "system", "content": "be good"}
PNG = "data:image/png;base64,iVBORw0KGgo="
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


_KEPT: list[Any] = []
"""Flows of the last threads, which the store does not keep alive."""


def loaded(*flows: Any) -> Threads:
    threads = Threads()
    list(threads.load(flows))
    _KEPT[:] = flows
    return threads


def agent(text: str = "look", *, answer: str = "done", extra: Json | None = None) -> Threads:
    """A call with two tool calls and a call with their results."""
    calls = [tool_call("c1", "look", '{"at":1}'), tool_call("c2", "look")]
    first = [SYSTEM, user(text)]
    results = [{"role": "tool", "tool_call_id": f"c{n}", "content": f"result {n}"} for n in (1, 2)]
    more = {"tools": TOOLS, **(extra or {})}
    return loaded(
        chat(first, assistant("I look", *calls), extra=more, read=2000),
        chat([*first, assistant("I look", *calls), *results], assistant(answer), at=5, extra=more, read=2100, status=200),
    )


class Page(html.parser.HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("place", ["user", "system", "answer", "arguments", "result", "title", "name", "parameter"])
def test_no_planted_secret_is_shared(format: str, place: str) -> None:
    """None of the secrets and details is in any format, wherever in a conversation it was."""
    said = "\n\n".join(text for _, text in PLANTED)
    system = {"role": "system", "content": said if place == "system" else "be good"}
    question = user(said if place in ("user", "title") else "please look")
    if place == "name":
        question["name"] = PLANTED[0][0]
    called = tool_call("c1", "look", json.dumps({"text": said}) if place == "arguments" else "{}")
    result = {"role": "tool", "tool_call_id": "c1", "content": said if place == "result" else "42"}
    extra = {"metadata": {"note": said}, "user": PLANTED[0][0]} if place == "parameter" else {}
    first = chat([system, question], assistant(None, called), extra=extra)
    second = chat([system, question, assistant(None, called), result], assistant(said if place == "answer" else "ok"), at=5, extra=extra)
    threads = loaded(first, second)
    redactor = redact.Redactor(redact.parse(OPTIONS))
    text = share(threads, format, None if format == "json" else threads.thread_ids, redactor)
    unescaped = {text, html.unescape(text), text.replace("\\\\", "\\"), re.sub(r"\\([\\`*_{}\[\]<>()#+!|~&])", r"\1", text)}
    if format.startswith("json"):
        unescaped |= {one for line in text.splitlines() if format == "jsonl" for one in _strings(json.loads(line))}
    assert [] == [secret for secret, _ in PLANTED for each in unescaped if secret in each]


def _strings(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {text for pair in value.items() for one in pair for text in _strings(one)}
    if isinstance(value, list):
        return {text for one in value for text in _strings(one)}
    return {value} if isinstance(value, str) else set()


def test_chats_as_jsonl_load_in_the_sdk_s_types() -> None:
    """A line has all messages with the last answer, and the tools, as the openai SDK's types have them."""
    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam  # takes a second

    (text,) = share(agent(), "jsonl").splitlines()
    line = json.loads(text)
    assert ["messages", "tools"] == list(line)
    TypeAdapter(list[ChatCompletionMessageParam]).validate_python(line["messages"])
    TypeAdapter(list[ChatCompletionToolUnionParam]).validate_python(line["tools"])
    assert ["system", "user", "assistant", "tool", "tool", "assistant"] == [message["role"] for message in line["messages"]]
    assert (TOOLS, "done") == (line["tools"], line["messages"][-1]["content"])


def test_responses_as_jsonl_load_in_the_sdk_s_types() -> None:
    """A line has the input of the whole chain and the last output, as they are."""
    from openai.types.responses import ResponseInputItemParam, ResponseOutputItem  # takes a second

    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}", "status": "completed"}
    part = {"type": "output_text", "text": "done", "annotations": []}
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [part]}
    result = {"type": "function_call_output", "call_id": "c1", "output": "42"}
    threads = loaded(responses("look", [call], id="resp_j"), responses([result], [message], at=3, extra={"previous_response_id": "resp_j"}))
    (text,) = share(threads, "jsonl").splitlines()
    line = json.loads(text)
    assert {"input": [user("look"), call, result], "output": [message]} == line
    TypeAdapter(list[ResponseInputItemParam]).validate_python(line["input"])
    TypeAdapter(list[ResponseOutputItem]).validate_python(line["output"])


def test_a_client_that_repeats_its_input_is_not_repeated_in_jsonl() -> None:
    """Without `previous_response_id` the last input has everything."""
    first = [{"role": "user", "content": "one"}]
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "fine"}]}
    threads = loaded(responses(first, [answer]), responses([*first, answer, user("two")], [], at=3))
    assert [3] == [len(json.loads(line)["input"]) for line in share(threads, "jsonl").splitlines()]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "refusal": "no", "content": ""}),
        (
            {"role": "assistant", "content": "x", "audio": {"id": "a", "data": "QQ"}, "annotations": []},
            {"role": "assistant", "content": "x", "audio": {"id": "a"}},
        ),
    ],
)
def test_answers_become_messages(answer: Json, message: Json) -> None:
    """An answer has only the members that a request may have."""
    line = jsonl.line(threads := loaded(chat([user("x")], answer, extra={"functions": [{"name": "f"}]})), threads.thread_ids[0])
    assert line
    assert (message, [{"type": "function", "function": {"name": "f"}}]) == (line["messages"][-1], line["tools"])


def test_a_thread_without_texts_has_no_line() -> None:
    """A thread whose flows are gone, or a failed one, is left out or has its messages."""
    threads = Threads()
    list(threads.load([chat([user("x")])]))

    gc.collect()
    assert "" == share(threads, "jsonl")
    (line,) = share(loaded(failed([user("x")])), "jsonl").splitlines()
    assert {"messages": [user("x")], "tools": []} == json.loads(line)
    one, two = responses("x", [], id="resp_k"), responses("y", [], at=2, extra={"previous_response_id": "resp_k"})
    threads = Threads()
    list(threads.load([one, two]))
    del one
    gc.collect()
    assert ["y"] == [item["content"] for item in json.loads(share(threads, "jsonl", [threads.thread_of(two.id) or ""]))["input"]]


@pytest.mark.parametrize("format", FORMATS)
def test_no_part_of_a_key_is_left_where_a_text_is_cut(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is too long is cut before a word, and so is a title of one word; a part of a key would not be recognised."""
    monkeypatch.setattr(document, "LONGEST_TEXT", 20_000)
    key = "0123456789abcdef" * 2
    said = "." * (document.LONGEST_TEXT - 31) + " " + key
    title = "z" * 120 + "," + "Aa1/" * 21 + "Aa=="
    threads = loaded(chat([user("x"), assistant("y"), user(said)]), chat([user(title)], at=5))
    text = share(threads, format)
    assert key[:20] not in text
    assert format in ("html", "jsonl", "markdown") or "Aa1/" not in text.replace("\\", "")
    assert format in ("json", "text") or "more characters" in text


@pytest.mark.parametrize("format", FORMATS)
def test_a_secret_that_a_later_thread_shows_is_removed(format: str) -> None:
    """A name in one thread shows that a word of an earlier thread is a secret."""
    threads = loaded(chat([user("I said hunter2hunter2")]), chat([user("password=hunter2hunter2")], at=5))
    assert "hunter2hunter2" not in share(threads, format)


def test_values_that_nest_deeply_are_cut_in_jsonl() -> None:
    """A member that nests deeper than Python's stack ends in null."""
    deep = b'{"messages": [{"role": "user", "content": "x", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}]}"
    (line,) = share(loaded(flow("/v1/chat/completions", deep, {"choices": []})), "jsonl").splitlines()
    assert "x" == json.loads(line)["messages"][0]["content"]


def test_html_needs_nothing_else() -> None:
    """A page has no script, no link but to itself, no request, and the whole thread."""
    image = {"role": "user", "content": [{"type": "text", "text": "see"}, {"image_url": PNG}, {"image_url": "https://evil.example/x.png"}]}
    sound = {"input_audio": {"data": "QUJD", "format": "wav"}}
    threads = loaded(chat([SYSTEM, image, {"role": "user", "content": [sound, {"file": {"filename": "<b>", "file_data": "x"}}]}]))
    text = share(threads, "html")
    page = Page(text)
    assert {"script", "link", "iframe", "object", "form", "base"}.isdisjoint(page.tags)
    addresses = [value or "" for name, value in page.attributes if name in ("href", "src", "action", "data", "srcset", "poster")]
    assert [PNG, "data:audio/wav;base64,QUJD"] == addresses
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:") in page.attributes
    assert "[image]" in text
    assert "[file &lt;b&gt;]" in text


def test_html_of_several_threads() -> None:
    """Each thread is a place of the page, and the links lead there."""
    text = share(loaded(chat([user("one")]), chat([user("two")], at=9)), "html")
    page = Page(text)
    assert ["#thread-1", "#thread-2"] == [value for name, value in page.attributes if name == "href"]
    assert {("id", "thread-1"), ("id", "thread-2")} <= set(page.attributes)
    assert "<title>Threads</title>" in html_page.page([])


def test_images_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and sounds above the limit are named only."""
    monkeypatch.setattr(html_page, "LARGEST_MEDIA", len(PNG))
    text = share(loaded(chat([{"role": "user", "content": [{"image_url": PNG}, {"image_url": PNG}]}])), "html")
    assert (1, 1) == (text.count("<img"), text.count("<p>[image]</p>"))


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'> \x1b[31mred\x07\x9b5m \u202eoverride "
    "javascript:alert(1) ``` # [x](javascript:x)\ud800"
)


def test_hostile_texts_are_escaped() -> None:
    """No text is an element, a link or a control sequence in any format."""
    threads = agent(HOSTILE, answer=HOSTILE)
    texts = {format: share(threads, format, threads.thread_ids) for format in FORMATS}
    for format, text in texts.items():
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", text), format
    page = Page(texts["html"])
    assert {"script", "img", "a"}.isdisjoint(page.tags)
    fenced = re.sub(r"(?s)\n(`{3,})text\n.*?\n\1", "", texts["markdown"])
    assert not re.search(r"(?<!\\)[<`\[]", fenced)
    assert "````text" in texts["markdown"]


def test_hostile_names_are_escaped() -> None:
    """Names of a call and of a file's parts are no control sequences in any format."""
    facts = {"model": HOSTILE, "deployment": HOSTILE, "backend": HOSTILE, "record": {"client": HOSTILE, "repairs": [HOSTILE]}}
    file = {"role": "user", "content": [{"file": {"filename": HOSTILE, "file_data": "x"}}]}
    threads = loaded(chat([file], model=HOSTILE, metadata={"operation": "POST /v1/chat/completions", **facts}))
    for format in FORMATS:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", share(threads, format)), format


def test_large_conversations_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts above the limits end with a whole word and a note."""
    monkeypatch.setattr(document, "LONGEST_TEXT", 40)
    monkeypatch.setattr(document, "LONGEST_THREAD", 50)
    threads = agent("word " * 30, answer="more")
    for format in ("text", "html", "markdown"):
        text = share(threads, format, threads.thread_ids)
        assert re.search(r"… 1\d\d more characters", text)
    (line,) = share(threads, "jsonl").splitlines()
    assert "word… 1" in json.loads(line)["messages"][1]["content"]
    found = document.thread_of(threads, threads.thread_ids[0], redact.Redactor())
    assert sum(len(block["text"]) for call in found["calls"] for block in (*call["new"], *call["answer"])) <= 50


def test_an_overview() -> None:
    """All threads with their calls, children indented, why the cache broke, and single calls."""
    main = chat(
        [SYSTEM, user("main")], assistant(None, tool_call("c1", "ask", '{"x":"help me"}')), read=2000, metadata={"deployment": "prod"}
    )
    helper = chat([user("help me")], at=2, metadata={"record": {"client": "team", "attempts": [1, 2], "repairs": ["max_tokens"]}})
    more = chat(
        [SYSTEM, user("edited"), assistant(None, tool_call("c1")), {"role": "tool", "tool_call_id": "c1", "content": "x"}], at=5, read=2100
    )
    refused, again = failed([user("again")], at=20), chat([user("again")], at=24, running=True)
    nothing = chat([], at=30, read=None, body={"usage": {"prompt_tokens": 4}})
    dead = chat([user("dead")], at=40, running=True)

    dead.error = flows.Error("no address", 1_795_860_041.0)
    single = flow("/v1/embeddings", {"model": "e", "input": "x"}, {"usage": {"prompt_tokens": 1}})
    threads = loaded(main, helper, more, refused, again, nothing, dead, single)
    text = share(threads, "text")
    for line in (
        f"{main.id}  main",
        f"  {helper.id}  help me",
        "        cache: 0 of 1,920 tokens: message 1 changed",
        "gpt-4o → prod @ proxy · 200 · 2,000+5 tokens",
        "2 attempts · max_tokens",
        "429 · 0+0 tokens",
        "running · ? tokens · retry",
        "(no message of the user)",
        "no response · 0+0 tokens · $0.00 · 1.0 s · no address",
        "single calls",
        "embeddings · e @ proxy · 200 · 1+0 tokens",
        "team · gpt-4o · 1 call",
        "1 error",
    ):
        assert line in text
    assert "…" not in text
    assert "single calls" not in share(loaded(chat([user("one")])), "text")


@pytest.mark.parametrize(
    "block", ["model", "tools", "response_format", "system", "backend", "expired", "short", "prompt_cache_key", "unexplained"]
)
def test_each_cause_has_words(block: str) -> None:
    """A cause is named in words; an unbroken cache has none."""
    verdict = {"expected_tokens": 1920, "cached_tokens": None, "broken_by": {"block": block, "index": None}}
    assert re.fullmatch(r"cache: 0 of 1,920 tokens: [\w\s,]+", document.why(verdict))
    assert "" == document.why({**verdict, "broken_by": None})


def test_formats() -> None:
    """Each format has a media type, one thread can be chosen, and an unknown one is an error."""
    threads = loaded(chat([user("one")]), chat([user("two")], at=9))
    assert set(FORMATS) == set(MEDIA_TYPES)
    assert 1 == len(json.loads(share(threads, "json", threads.thread_ids[:1]))["threads"])
    for format in FORMATS:
        with pytest.raises(KeyError):
            share(threads, format, ["unknown"])


def test_times_removed_by_a_pattern() -> None:
    """A pattern that removes the times leaves the page readable."""
    assert "[pattern 1]" in share(agent(), "html", None, redact.Redactor(redact.parse([r"20\d\d-\d\d-\d\dT.*"])))


def test_call_lines() -> None:
    """A deployment without a model is named alone, and unknown output is shown as such."""
    call: Json = {"model": None, "deployment": "prod", "backend": None, "status": 200, "error": "cut", "attempts": 1, "repairs": []}
    call |= {"input_tokens": 5, "output_tokens": None, "cached_input_tokens": 3, "cost_usd": None, "latency_ms": {"total": None}}
    assert "prod · 200 · 5+? tokens (3 cached) · cut · handoff" == document.call_line({**call, "retry": False, "handoff": True})
    assert "" == plain.conversation([])
