"""W3C Trace Context."""

from __future__ import annotations

import secrets

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.accounting import trace_context as module
from azure_openai_proxy.accounting.trace_context import TraceContext, attempt_span_id, begin, new_ids, set_headers

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def headers(*fields: tuple[str, str]) -> Headers:
    return Headers([(name.encode(), value.encode()) for name, value in fields])


def sent(given: Headers, attempt: int = 1) -> tuple[list[str], list[str]]:
    """`traceparent` and `tracestate` of an attempt."""
    set_headers(given, begin(given.fields), attempt)
    return given.get_all("traceparent"), given.get_all("tracestate")


def test_a_trace_is_continued() -> None:
    """The trace of the client, with an id for this request."""
    found = begin(headers(("traceparent", PARENT)).fields)
    assert (TRACE, SPAN, True, False, b"") == (found.trace_id, found.parent_span_id, found.sampled, found.random, found.state)
    assert len(found.span_id) == 16
    assert SPAN != found.span_id
    assert begin(headers(("traceparent", PARENT)).fields).span_id != found.span_id


@pytest.mark.parametrize(
    ("parent", "sampled", "random"),
    [
        (f"00-{TRACE}-{SPAN}-00", False, False),
        (f" 00-{TRACE}-{SPAN}-01\t", True, False),
        (f"00-{TRACE}-{SPAN}-03", True, True),
        (f"00-{TRACE}-{SPAN}-ff", True, True),
        (f"cc-{TRACE}-{SPAN}-01", True, False),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True, False),
    ],
)
def test_flags(parent: str, sampled: bool, random: bool) -> None:
    """Flags are obeyed; unknown ones are not passed on; a later version is read as this one."""
    context = begin(headers(("traceparent", parent)).fields)
    assert (TRACE, sampled, random) == (context.trace_id, context.sampled, context.random)
    (given,), _ = sent(headers(("traceparent", parent)))
    assert f"00-{TRACE}-" == given[:36]
    assert sampled + 2 * random == int(given[-2:], 16)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE[:-1]}-{SPAN}-01",
    ],
)
def test_an_invalid_parent_is_ignored(parent: str) -> None:
    """A new trace begins, and the `tracestate` of the other one is dropped."""
    given = headers(("traceparent", parent), ("tracestate", "a=1"))
    context = begin(given.fields)
    assert ("", True, b"") == (context.parent_span_id, context.sampled, context.state)
    assert TRACE != context.trace_id
    assert int(context.trace_id, 16)
    parents, states = sent(given)
    assert 1 == len(parents)
    assert parents[0].endswith("-01")
    assert [] == states


def test_two_parents_are_none() -> None:
    """Of two `traceparent` headers, neither is followed."""
    given = headers(("traceparent", PARENT), ("Traceparent", PARENT))
    assert not begin(given.fields).parent_span_id
    assert 1 == len(sent(given)[0])


@pytest.mark.parametrize(
    ("states", "passed"),
    [
        (["a=1, b@c=2"], ["a=1,b@c=2"]),
        (["a=1", "b=2"], ["a=1,b=2"]),
        (["a=1,,", ""], ["a=1"]),
        (["A=1"], []),
        (["a=1,b"], []),
        (["a=" + "x" * 257], []),
        ([",".join(f"k{number}=1" for number in range(32))], [",".join(f"k{number}=1" for number in range(32))]),
        ([",".join(f"k{number}=1" for number in range(33))], []),
        ([",".join(f"k{number}={'x' * 200}" for number in range(30))], []),
        ([""], []),
        ([], []),
    ],
)
def test_state(states: list[str], passed: list[str]) -> None:
    """A valid `tracestate` is passed on as one header; an invalid one is dropped and does not invalidate the parent."""
    given = headers(("traceparent", PARENT), *(("TraceState", state) for state in states))
    assert TRACE == begin(given.fields).trace_id
    assert passed == sent(given)[1]


def test_attempts_have_ids_of_their_own() -> None:
    """Each attempt is a child of the request with an id that follows from the request's, and is never zero."""
    context = TraceContext(TRACE, SPAN)
    ids = [attempt_span_id(SPAN, number) for number in range(1, 100)]
    assert 99 == len({*ids} - {SPAN})
    given = headers(("host", "a"))
    set_headers(given, context, 2)
    assert f"00-{TRACE}-{ids[1]}-01" == given["traceparent"]
    assert "a" == given["host"]
    assert int(attempt_span_id(f"{2**64 - 0x9E3779B97F4A7C15:016x}", 1), 16)


def test_new_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids have their lengths, differ, and are never zero, even if the system returns many zeros."""
    zeros = [0]

    def urandom(size: int) -> bytes:
        return bytes(size) if zeros and zeros.pop() == 0 else secrets.token_bytes(size)

    monkeypatch.setattr("os.urandom", urandom)
    monkeypatch.setattr(module, "_made", [])
    ids = [new_ids() for _ in range(200)]
    assert {(32, 16)} == {(len(trace), len(span)) for trace, span in ids}
    assert 400 == len({id for pair in ids for id in pair})
    assert all(int(id, 16) for pair in ids for id in pair)
