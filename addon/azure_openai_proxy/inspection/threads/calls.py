"""One flow as a call: its identity, its blocks as hashes, and what it used. The texts stay in the flow.

A flow file is untrusted input, and may be of another program: every member of the metadata and of a body may have any type.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy.accounting import usage
from azure_openai_proxy.accounting.record import NO_TOKENS, Tokens
from azure_openai_proxy.api import session
from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection import text as readable_text

from . import blocks, bodies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mitmproxy.flow import Flow

    from azure_openai_proxy.inspection.flow_metadata import SavedExchange

__all__ = ["LONGEST_TITLE", "Call", "Prompt", "is_call", "keep_new_texts", "links", "read", "text_key"]

LONGEST_TITLE = 200
LONGEST_SAID = 200_000
"""Characters of a call's new texts that a search can find."""
MOST_NAMES = 10_000
"""Tool calls of one answer whose names are listed."""
MOST_ARGUED = 200
"""Tool calls of one answer in whose arguments the first message of another thread is looked for."""
LONGEST_NAME = 256
LATEST = 253_402_300_800.0
"""The Unix time of the year 10000, which no date can have. An impossible start counts as it."""
_OPERATION = re.compile(
    r"(?:^|/)(?P<name>chat/completions|responses|completions|embeddings|"
    r"images/(?:generations|edits|variations)|audio/(?:speech|transcriptions|translations)|videos|realtime(?:/translations)?|live/sessions)/?$"
)
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
_CONVERSATIONS = {"chat/completions": "chat", "responses": "responses"}
_TTL = re.compile(r"([0-9]{1,9})(s|m|h|d|min)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_CONTEXT = re.compile(r"<([a-z_-]{1,60})>.*</\1>|# AGENTS\.md .*", re.DOTALL)
"""A message that a coding agent writes before the user's own one."""
_MASK = (1 << 64) - 1
_SYSTEM = frozenset({"system", "developer"})
_PLAIN = _SYSTEM | {"user", "assistant"}


@dataclass(slots=True, eq=False)
class Prompt:
    """A request's blocks as 64-bit hashes, which are valid in this process only. Hashes of equal blocks are equal."""

    tools: int = 0
    format: int = 0
    system: int = 0  # the instructions and the system messages at the start
    instructions: int = 0
    items: array[int] = field(default_factory=lambda: array("Q"))  # each message as it was written
    keys: array[int] = field(default_factory=lambda: array("Q"))  # those of no system, without what clients change in a repeated message
    sizes: array[int] = field(default_factory=lambda: array("Q"))  # characters of each message
    system_items: int = 0  # messages at the start that belong to the system block
    tools_size: int = 0
    system_size: int = 0


@dataclass(slots=True, eq=False)
class Call:
    """A call of a thread, or a single call (`kind` ""). None and "" mean unknown."""

    id: str
    kind: str  # chat, responses, ""
    operation: str
    started: float
    ended: float | None = None
    first_byte: float | None = None  # Unix time
    client: str = ""
    address: str = ""  # of the client, known from the start of the request
    agent: str = ""  # the client's program
    session: str | None = None
    conversation: str | None = None
    previous: str | None = None
    cache_key: str | None = None
    response_id: str | None = None
    model: str | None = None  # the client's name
    response_model: str | None = None
    deployment: str | None = None
    served: str | None = None
    backend: str | None = None
    tier: str | None = None
    zone: str | None = None
    status: int | None = None
    error: str = ""
    refused: bool = False  # the upstream reported an error
    running: bool = False
    retried: bool = False  # the client says that it sends the request again
    attempts: int = 1
    repairs: list[str] = field(default_factory=list)
    tokens: Tokens = NO_TOKENS
    latency: dict[str, float] = field(default_factory=dict)
    overhead: float | None = None
    connect: float | None = None
    ttl: float | None = None
    stream: bool = False
    prompt: Prompt = field(default_factory=Prompt)
    title: str = ""
    answer_size: int = 0  # characters
    answers: tuple[int, ...] = ()  # keys of the answer: of its text and of each tool call
    results: tuple[int, ...] = ()  # keys of what the request repeats of earlier answers
    arguments: tuple[int, ...] = ()  # keys of texts in the arguments of the answer's tool calls
    first_key: int | None = None  # of the first message of the user
    tool_calls: tuple[str, ...] = ()
    texts: list[str] = field(default_factory=list)  # of each message, until the call is in its thread
    said: str = ""  # the answer; in a thread also the new messages before it
    finish: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the call failed without using a token."""
        return bool(self.error) and (self.status is None or self.status >= 400 or (self.refused and self.tokens.input is None))

    @property
    def broken(self) -> bool:
        """Whether the call failed or ended early."""
        return bool(self.error)


def is_call(flow: Flow) -> bool:
    """Whether a flow is a call of a model."""
    return _operation(flow) is not None


def _operation(flow: Flow) -> str | None:
    if not isinstance(flow, http.HTTPFlow) or (flow.request.method != "POST" and flow.websocket is None):
        return None
    known = flow.metadata.get(f"{flow_metadata.PREFIX}operation")
    paths = [known.partition(" ")[2]] if isinstance(known, str) else []  # the client's, which any base URL may precede
    matches = (_OPERATION.search(path.partition("?")[0]) for path in (*paths, flow.request.path))
    return next((match["name"] for match in matches if match), None)


def read(flow: http.HTTPFlow) -> Call | None:
    """Read a flow; None if it is no call of a model, or its request is not complete."""
    name = _operation(flow)
    if name is None or (flow.request.timestamp_end is None and flow.response is None and flow.error is None):
        return None
    known, saved = flow_metadata.known(flow), flow_metadata.parse(flow)
    kind = "" if flow.websocket else _CONVERSATIONS.get(name, "")
    call = Call(str(flow.id), kind, name, _time(flow.request.timestamp_start) or LATEST)
    _read_metadata(call, flow, known)
    _read_head(call, flow, saved)
    request: dict[str, Any] = {}
    if name not in ("audio/transcriptions", "audio/translations", "images/edits") and not flow.websocket:
        request = bodies.client_request(flow, saved)
        _read_request(call, request)
    # Bodies of images and sounds are large, and are read only if no one has recorded what they used.
    reads = kind or (flow.websocket is None and (name in ("embeddings", "completions") or call.tokens == NO_TOKENS))
    found = bodies.answer(flow, saved) if reads else bodies.Answer()
    _read_answer(call, found)
    if kind:
        _read_texts(call, request, found)
    return call


# What the proxy knows


def _read_metadata(call: Call, flow: http.HTTPFlow, known: Mapping[str, Any]) -> None:
    record = known["record"] if isinstance(known.get("record"), dict) else {}
    call.model = _name(known.get("model")) or _name(record.get("model"))
    match = _DEPLOYMENT.search(flow.request.path)
    call.deployment = _name(known.get("deployment")) or _name(record.get("deployment")) or (match[1] if match else None)
    ours = flow_metadata.is_ours(flow)
    call.backend = _name(known.get("backend")) or _name(record.get("backend")) or (None if ours else _name(flow.request.pretty_host))
    call.client = _name(record.get("client")) or ""
    call.zone, call.tier = _name(record.get("zone")), _name(record.get("price_tier")) or _name(record.get("service_tier"))
    call.served = _name(record.get("served_deployment"))
    call.response_id = _name(record.get("response_id"))
    attempts, repairs = record.get("attempts"), record.get("repairs")
    call.attempts = len(attempts) if isinstance(attempts, list) and attempts else 1
    call.repairs = [text for text in map(_name, repairs) if text] if isinstance(repairs, list) else []
    call.stream = known.get("stream") is True
    call.tokens = _tokens(known)
    call.overhead = _seconds(record.get("overhead"))
    latency = record.get("latency")
    call.latency = _latency(latency) if isinstance(latency, dict) else {}
    address: Any = flow.client_conn.peername  # None in a file of another program
    call.address = str(address[0]) if address else ""
    if (first := _seconds(known.get("first_chunk"))) is not None:
        call.first_byte = (_time(flow.request.timestamp_end) or call.started) + first


def _tokens(known: Mapping[str, Any]) -> Tokens:
    counts = {name: known.get(f"{name}_tokens") for name in Tokens._fields}
    return Tokens(**{name: count if type(count) is int and 0 <= count <= usage.MOST else None for name, count in counts.items()})


def _latency(value: Mapping[Any, Any]) -> dict[str, float]:
    pairs = list(value.items())[: usage.MOST_LATENCIES]
    return {
        name: number
        for name, number in pairs
        if isinstance(name, str) and len(name) <= 40 and type(number) in (int, float) and 0 <= number <= usage.MOST
    }


def _name(value: Any) -> str | None:
    return value[:LONGEST_NAME] if isinstance(value, str) and value else None


def _time(value: float | None) -> float | None:
    """A time of a flow; None if a clock cannot have shown it."""
    return value if value is not None and 0 <= value < LATEST else None


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e9 else None


# Heads


def _read_head(call: Call, flow: http.HTTPFlow, saved: SavedExchange) -> None:
    fields = saved.client_request.headers if saved.client_request else list(flow.request.headers.items(multi=True))
    headers = {name.lower(): value for name, value in fields}
    call.session = session.in_header(headers)
    call.retried = headers.get("x-stainless-retry-count", "0") not in ("", "0")
    call.agent = headers.get("user-agent", "").partition(" ")[0][:LONGEST_NAME]
    response, error = flow.response, flow.error
    connection = flow.server_conn
    begin, end = connection.timestamp_start, connection.timestamp_tls_setup or connection.timestamp_tcp_setup
    if begin and end and begin >= flow.request.timestamp_start:
        call.connect = _seconds(end - begin)
    if response is None:
        call.running = error is None
        call.error = error.msg[:LONGEST_NAME] if error else ""
        call.ended = _time(error.timestamp) if error else None
        return
    call.status = response.status_code
    ended = response.timestamp_end or (error.timestamp if error else None)
    call.ended, call.running = _time(ended), ended is None
    call.first_byte = call.first_byte or _time(response.timestamp_start)
    call.served = call.served or _name(response.headers.get("x-ms-deployment-name"))
    if error:
        call.error = error.msg[:LONGEST_NAME]
    elif response.status_code >= 400:
        call.error = str(response.status_code)


# Bodies


def _read_request(call: Call, request: Mapping[str, Any]) -> None:
    call.model = call.model or _name(request.get("model"))
    call.stream = call.stream or request.get("stream") is True
    call.cache_key = _name(request.get("prompt_cache_key"))
    if call.kind == "responses":
        call.previous = _name(request.get("previous_response_id"))
        conversation = request.get("conversation")
        call.conversation = _name(conversation.get("id") if isinstance(conversation, dict) else conversation)
    options = request.get("prompt_cache_options")
    call.ttl = _ttl(options.get("ttl") if isinstance(options, dict) else None)


def _ttl(value: object) -> float | None:
    match = _TTL.fullmatch(str(value)) if type(value) in (int, str) else None
    return float(int(match[1]) * _SECONDS[match[2]]) if match else None


def _read_answer(call: Call, found: bodies.Answer) -> None:
    call.response_model = _name(found.model)
    call.response_id = _name(found.id) or call.response_id
    call.tier = call.tier or _name(found.tier)
    call.finish = _name(found.finish)
    if found.usage is not None and (counted := usage.tokens(found.usage)):
        call.tokens = counted
    if found.latency:
        call.latency = _latency(found.latency)
    call.refused = bool(found.error)
    if found.error and not call.error:
        error = found.error
        code = error.get("code") or error.get("type") if isinstance(error, dict) else error
        call.error = str(code or "error")[:LONGEST_NAME]


def _read_texts(call: Call, request: dict[str, Any], found: bodies.Answer) -> None:
    items = bodies.items(request)
    prompt = call.prompt
    formats = request.get("text")
    prompt.format = _hash(request.get("response_format") or (formats.get("format") if isinstance(formats, dict) else None))
    tools = [request.get(name) for name in ("tools", "functions") if request.get(name)]
    prompt.tools, prompt.tools_size = _hash(tools), _size(tools)
    system: list[Any] = [request["instructions"]] if request.get("instructions") else []
    leading, answered = True, False
    asked: list[str] = []  # by the user, before the first answer
    results: list[int] = []
    for item in items:
        role = blocks.role_of(item)
        leading = leading and role in _SYSTEM
        if leading:
            system.append(item)
            prompt.system_items += 1
        if (
            role in _PLAIN and isinstance(item, dict) and len(item) == 2 and isinstance(text := item.get("content"), str)
        ):  # most messages, in a third of the time
            prompt.items.append(hash((role, text)) & _MASK)
            kind, content = "system" if role in _SYSTEM else role, text.strip()
            if role not in _SYSTEM:
                prompt.keys.append(hash((role, ((kind, content, ()),))) & _MASK)
            prompt.sizes.append(len(text))
            if role == "assistant" and content:
                results.append(text_key(content))
            elif role == "user" and not answered and content:
                asked.append(content)
            call.texts.append(text)
        else:
            own = list(blocks.of_item(item))
            prompt.items.append(_hash(item))
            if role not in _SYSTEM:
                prompt.keys.append(_key(role, own))
            prompt.sizes.append(sum(len(block.text) for block in own))
            results += links(own, role)
            if role == "user" and not answered and own and own[0].text.strip():
                asked.append(own[0].text.strip())
            call.texts.append("\n".join(block.text for block in own))
        answered = answered or role == "assistant"
    if asked:
        title = next((text for text in asked if not _CONTEXT.fullmatch(text)), asked[0])
        call.title, call.first_key = _shortened(title), text_key(title)
    prompt.system, prompt.instructions = _hash(system), _hash(request.get("instructions"))
    prompt.system_size = sum(prompt.sizes[: prompt.system_items]) + _size(request.get("instructions") or "")
    call.results = tuple(dict.fromkeys(results))
    _read_output(call, found)


def _read_output(call: Call, found: bodies.Answer) -> None:
    outputs = list(blocks.of_items(found.output))
    called = [block for block in outputs if block.kind == "tool_call"]
    call.tool_calls = tuple(block.name[:LONGEST_NAME] for block in called[:MOST_NAMES])
    call.answers = tuple(dict.fromkeys(links(outputs, "assistant")))
    call.arguments = tuple(dict.fromkeys(key for block in called[:MOST_ARGUED] for key in _texts_in(block.text)))
    call.answer_size = sum(len(block.text) for block in outputs)
    call.said = "\n".join(block.text for block in outputs)


def _shortened(text: str) -> str:
    """The start of a text, up to a whole word: a part of a key would not be recognised as one."""
    words = " ".join(text[: 2 * LONGEST_TITLE].split())
    if len(words) <= LONGEST_TITLE and len(text) <= 2 * LONGEST_TITLE:
        return words
    return words[: LONGEST_TITLE + 1].rpartition(" ")[0] or words[:LONGEST_TITLE]


def keep_new_texts(call: Call, known: int) -> None:
    """Keep the end of the texts that the call adds to its thread. The thread has the first `known` messages already."""
    kept: list[str] = []
    left = LONGEST_SAID
    for text in (call.said, *reversed(call.texts[known:])):
        kept.append(text[:left])
        left -= len(text) + 1
        if left <= 0:
            break
    call.said = "\n".join(reversed(kept))
    call.texts = []


def links(found: list[blocks.Block], role: str) -> Iterator[int]:
    """Keys by which an answer is recognised in a later request."""
    for block in found:
        if block.kind in ("tool_call", "tool_result") and block.call_id:
            yield hash(("call", block.call_id)) & _MASK
        elif block.kind == "assistant" and role == "assistant" and block.text.strip():
            yield text_key(block.text)


def text_key(text: str) -> int:
    return hash(("text", text.strip())) & _MASK


def _texts_in(arguments: str) -> Iterator[int]:
    """Keys of the texts in the arguments of a tool call."""
    yield text_key(arguments)
    if len(arguments) > readable_text.LARGE:
        return
    try:
        value = readable_text.load(arguments.encode("utf-8", "replace"))
    except ValueError:
        return
    for member in list(value.values())[:50] if isinstance(value, dict) else ():
        if isinstance(member, str) and len(member.strip()) > 1:
            yield text_key(member)


def _key(role: str, own: list[blocks.Block]) -> int:
    return hash((role, tuple((block.kind, block.call_id or block.text.strip(), block.media) for block in own))) & _MASK


def _hash(value: Any) -> int:
    return hash(blocks.dumped(value)) & _MASK if value else 0


def _size(value: Any) -> int:
    return len(value if isinstance(value, str) else blocks.dumped(value)) if value else 0
