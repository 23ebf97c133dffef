"""The scanner for large JSON documents."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azure_openai_proxy.formats import json_edit, json_scan
from azure_openai_proxy.formats.json_scan import DEEPEST, MOST, SLICE, STEPS, InvalidError, Outline, Scanner, Turns, outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

json_scan._patterns()  # compiling takes longer than hypothesis's deadline
PLACES = ("model", "stream", "messages.*.role", "a.b", "a.*.*.b")


def sliced(content: bytes, size: int) -> Outline:
    """Scan a document that arrives in pieces of `size` bytes."""
    scanner, end = Scanner(PLACES, every=True), 0
    while not scanner.done:
        end = min(len(content), end + size)
        scanner.scan(content, end, final=end == len(content))
    return scanner.outline


def loaded(content: bytes) -> Any:
    """Return the result of `json.loads`; `...` if it fails."""
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):
        return ...


NAMES = st.sampled_from(["model", "stream", "messages", "role", "a", "b", "*", "", 'q"\\', "é"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("x" * 100),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=30,
)
DOCUMENTS = st.builds(
    lambda value, escaped, indent: json.dumps(value, ensure_ascii=escaped, indent=indent).encode(errors="replace"),
    JSON,
    st.booleans(),
    st.sampled_from([None, 2, "\r\n\t"]),
)
SPARE = st.sampled_from(
    [*(bytes([one]) for one in b'\x00\x7f\xff\xc3 ,:]}[{"\\0-.e'), b"", b"\\u12", b"nul", b'"a":', b"1,"],
)


@given(DOCUMENTS, st.integers(min_value=1, max_value=40))
@example(b"[1 2]", 1).via("a comma that is not there")
@example(b'{"a":01}', 2)
@example(b"[1.]", 1)
@example(b"[-]", 1)
@example(b'["\\u00"]', 3)
@example(b"[] []", 1)
@example(b'{"a":[1,]}', 40)
@example(b'{"a":{"b":1,}}', 40)
@example(b"", 1)
@example(b"12", 1)
@example(b'"\\ud83d"', 2)
@example(b'\xef\xbb\xbf{"a":1}', 9)
def test_it_accepts_the_documents_that_json_loads_accepts(content: bytes, size: int) -> None:
    """The scanner accepts the documents that `json.loads` accepts, in slices of any size."""
    value = loaded(content)
    if value is ...:
        with pytest.raises(InvalidError):
            sliced(content, size)
        return
    found = sliced(content, size)
    assert isinstance(value, dict) == found.is_object
    if isinstance(value, dict):
        assert repr(value) == repr({name: json.loads(content[one.value : one.end]) for name, one in found.top()})
        assert repr(value.get("model", ...)) == repr(json.loads(content[one.value : one.end]) if (one := found.get("model")) else ...)


@given(DOCUMENTS, st.integers(min_value=0), st.integers(min_value=0, max_value=3), SPARE, st.integers(min_value=1, max_value=40))
def test_it_refuses_the_documents_that_json_loads_refuses(content: bytes, at: int, dropped: int, put: bytes, size: int) -> None:
    """The scanner refuses the documents that `json.loads` refuses, made by replacing a part of a valid one."""
    at %= len(content) + 1
    test_it_accepts_the_documents_that_json_loads_accepts.hypothesis.inner_test(content[:at] + put + content[at + dropped :], size)  # type: ignore[attr-defined]


@given(st.dictionaries(NAMES, JSON, max_size=5), st.sampled_from([None, 1]), st.integers(min_value=1, max_value=40))
def test_it_finds_the_strings_that_json_strings_finds(value: dict[str, Any], indent: int | None, size: int) -> None:
    """The scanner finds the strings that `json_strings` finds, at every place and with repeated names."""
    content = json.dumps(value, indent=indent).encode()
    spans = json_edit.json_strings(content, PLACES)
    found = [one for one in sliced(content, size).at(*PLACES) if one.kind(content) == ord('"')]
    assert {(span.start, span.end) for span in spans} == {(one.value, one.end) for one in found}


def test_members_have_neighbours() -> None:
    """A member has the end of the previous one and the start of the next, so that it can be cut out."""
    content = b'{ "a" : 1 , "b":[ 2 ], "a.b":3, "c":{"d":4} }'
    found = [
        (name, content[one.start : one.end], one.before, content[one.next : one.next + 3])
        for name, one in outline(content, every=True).top()
    ]
    assert [
        ("a", b'"a" : 1', 0, b'"b"'),
        ("b", b'"b":[ 2 ]', 9, b'"a.'),
        ("a.b", b'"a.b":3', 21, b'"c"'),
        ("c", b'"c":{"d":4}', 30, b'{ "'),
    ] == [(name, text, before, behind) for name, text, before, behind in found]


def test_of_a_repeated_name_the_last_is_found() -> None:
    """If a name is repeated, the last member is found, as in `json.loads`."""
    content = b'{"model":"a","model":"b","\\u006dodel":"c"}'
    one = outline(content, PLACES).get("model")
    assert one
    assert b'"c"' == content[one.value : one.end]


# Limits


def test_it_nests_only_so_deep() -> None:
    """A document that nests deeper than the limit is refused immediately."""
    for depth in (DEEPEST - 1, DEEPEST):
        assert outline(b"[" * depth + b"]" * depth).kind == ord("[")
    with pytest.raises(InvalidError, match="nests deeper"):
        outline(b"[" * (DEEPEST + 1))


def test_long_tokens_are_read_across_slices() -> None:
    """Strings, names and white space of any length are read across slices, and numbers of up to 4300 digits."""
    long = b"x" * (3 * SLICE)
    content = b'{"%b":"%b",%b"n":%b}' % (long, long, b" " * 2 * SLICE, b"9" * 4300)
    found = outline(content, ("n",), every=True)
    assert found.partial, "its first name is too long to be compared"
    assert [b"9" * 4300] == [content[one.value : one.end] for one in found.at("n")]
    for wrong in (b"9" * 4301, b"9" * (2 * SLICE), b"0" * SLICE):
        with pytest.raises(InvalidError):
            outline(b'{"n":%b}' % wrong)


def test_only_so_many_members_are_noted() -> None:
    """The number of recorded members is limited, except for members of the root that are requested by name."""
    content = b'{%b"model":"a","a":{"b":1}}' % b"".join(b'"x%d":1,' % number for number in range(MOST))
    found = outline(content, PLACES, every=True)
    assert (MOST + 2, True) == (len(found.members), found.partial)
    assert found.get("model")
    assert not found.at("a.b")
    assert not outline(content, PLACES).partial


# Work


def turns(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the bytes and the steps of each turn."""
    scanner = Scanner(PLACES, every=True)
    try:
        while not scanner.done:
            position, steps = scanner.position, scanner.steps
            end = min(len(content), position + SLICE)
            scanner.scan(content, end, final=end == len(content))
            yield scanner.position - position, scanner.steps - steps
    except InvalidError:
        return


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "empty lists": lambda size: b'{"input":[' + b"[]," * (size // 3) + b"1]}",
    "lists without anything around": lambda size: b"[]," * (size // 3),
    "empty objects": lambda size: b'{"messages":[' + b"{}," * (size // 3) + b"1]}",
    "roles": lambda size: b'{"messages":[' + b'{"role":"a"},' * (size // 13) + b"1]}",
    "deep nesting": lambda size: b'{"a":' + b"[" * size,
    "nests": lambda size: b'{"a":[' + (b"[" * 900 + b"]" * 900 + b",") * (size // 1801) + b"1]}",
    "nests too deep for a run": lambda size: b'{"x":[' + (b"[" * 9 + b"]" * 9 + b",") * (size // 19) + b"1]}",
    "many names": lambda size: b"{" + b",".join(b'"%d":1' % number for number in range(size // 10)) + b"}",
    "names with escapes": lambda size: b"{" + b'"\\u0061":1,' * (size // 11) + b'"b":1}',
    "the model again and again": lambda size: b"{" + b'"model":"a",' * (size // 12) + b'"b":1}',
    "a long number": lambda size: b'{"a":' + b"1" * size + b"}",
    "a long fraction": lambda size: b'{"a":1.' + b"1" * size + b"}",
    "a long string of escapes": lambda size: b'{"a":"' + b"\\u00e9" * (size // 6) + b'"}',
    "a string without end": lambda size: b'{"a":"' + b"x" * size,
    "an image": lambda size: b'{"messages":[{"role":"user","content":[{"url":"' + b"A" * size + b'"}]}]}',
    "white space": lambda size: b'{"a":' + b" " * size + b"1}",
    "a list without end": lambda size: b'{"x":[[[' + b"1," * (size // 2),
    "numbers": lambda size: b'{"x":[' + b"-1.5e3," * (size // 7) + b"1]}",
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_the_work_is_linear_and_comes_in_slices(shape: str) -> None:
    """Twice the bytes take at most twice the steps, and each turn is within its limits of bytes and steps."""
    total = []
    for size in (35_000, 70_000, 140_000):
        counted = list(turns(HOSTILE[shape](size)))
        assert all(read <= SLICE and steps <= STEPS for read, steps in counted)
        total.append((len(counted), sum(steps for _, steps in counted)))
    for (fewer, less), (more, greater) in itertools.pairwise(total):
        assert more <= 2 * fewer + 2
        assert greater <= 2 * less + STEPS


def test_a_slice_is_read_a_few_times_at_most() -> None:
    """An incomplete run is matched again at most once for each level that the pattern follows."""
    for inner in (b"1,", b'"a":1,'):
        opening = (b"[" if inner == b"1," else b'{"x":') * 4
        counted = list(turns(b'{"x":[' + opening + inner * 20_000))
        assert sum(steps for _, steps in counted) < 40


def test_documents_that_are_read_at_the_same_time_take_turns() -> None:
    """Concurrent scans alternate: after each slice of one document, other tasks run."""
    done: list[str] = []
    others = 0

    async def large(turns: Turns, name: str) -> None:
        assert (await turns.outline(b'{"model":"%b"}' % (b"x" * 5 * SLICE), PLACES)).get("model")
        done.append(name)

    async def other() -> None:
        nonlocal others
        while len(done) < 2:
            others += 1
            await asyncio.sleep(0)

    async def main() -> None:
        turns = Turns()
        await asyncio.gather(large(turns, "first"), large(turns, "second"), other())

    asyncio.run(main())
    assert ["first", "second"] == done
    assert others >= 2 * 5


def test_the_patterns_are_made_once() -> None:
    """The patterns are compiled once, for the first large document."""
    assert json_scan._patterns() is json_scan._patterns()
