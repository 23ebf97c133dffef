"""The parser for server-sent events."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.formats import sse
from azure_openai_proxy.formats.sse import Decoder, Event


def decode(*chunks: bytes) -> list[Event]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.flush()


def told(events: list[Event]) -> list[Event]:
    """Return the events that are more than comments and blank lines."""
    return [event for event in events if not event.raw.startswith((b":", b"\n", b"\r"))]


def dispatched(stream: bytes) -> list[tuple[bytes | None, bytes]]:
    """Return the name and data of each event that a browser would dispatch."""
    return [(event.event, event.data) for event in decode(stream) if event.data is not None]


STREAMS = st.lists(
    st.sampled_from(
        [
            b"data: ",
            b"data",
            b"data:",
            b"event: x",
            b":",
            b"id: 1",
            b"\n",
            b"\r\n",
            b"\r",
            b"\n\n",
            b"a",
            b" ",
            b"{}",
            "é".encode(),
            sse.BOM,
        ]
    ),
    max_size=30,
).map(b"".join)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
class TestWhatwgExamples:
    """The examples of the standard, with each kind of line end."""

    def test_stock_ticker(self, end: bytes) -> None:
        """Several data lines are joined by line ends."""
        stream = b"data: YHOO\ndata: +2\ndata: 10\n\n".replace(b"\n", end)
        assert [(None, b"YHOO\n+2\n10")] == dispatched(stream)

    def test_four_blocks(self, end: bytes) -> None:
        """A comment is not an event, an id is not data, and of two spaces one is kept. A browser discards the last block."""
        stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n".replace(b"\n", end)
        assert [(None, b"first event"), (None, b"second event"), (None, b" third event")] == dispatched(stream)

    def test_empty_data(self, end: bytes) -> None:
        """A data field without a colon is an empty line of data; two are a line end."""
        stream = b"data\n\ndata\ndata\n\ndata:\n\n".replace(b"\n", end)
        assert [(None, b""), (None, b"\n"), (None, b"")] == dispatched(stream)

    def test_space_after_the_colon(self, end: bytes) -> None:
        """One space after the colon is ignored."""
        stream = b"data:test\n\ndata: test\n\n".replace(b"\n", end)
        assert [(None, b"test"), (None, b"test")] == dispatched(stream)

    def test_named_events(self, end: bytes) -> None:
        """An event's name is the value of its last event field."""
        stream = b"event: add\ndata: 73857293\n\nevent: x\nevent: remove\ndata: 2153\n\nevent\ndata: 1\n\n".replace(b"\n", end)
        assert [(b"add", b"73857293"), (b"remove", b"2153"), (b"", b"1")] == dispatched(stream)


def test_byte_order_mark() -> None:
    """A byte order mark at the start of the stream is ignored; a later one is part of a field's name."""
    assert [(None, b"a")] == dispatched(sse.BOM + b"data: a\n\n" + sse.BOM + b"data: b\n\n")


def test_mixed_line_ends() -> None:
    """Each line may have its own kind of line end."""
    assert [(b"x", b"a\nb"), (None, b"c")] == dispatched(b"data: a\r\nevent: x\rdata: b\n\r\ndata: c\n\n")


def test_carriage_return_is_held_back() -> None:
    """A line end in two reads is one line end."""
    decoder = Decoder()
    assert [] == decoder.feed(b"data: a\r\n\r")
    assert [Event(b"data: a\r\n\r\n", b"a")] == decoder.feed(b"\n")


def test_extra_blank_lines_are_kept() -> None:
    """Additional blank lines are events without data, so that no input is lost."""
    assert [Event(b"\n\n", None), Event(b"data: a\n\n", b"a"), Event(b"\n", None)] == decode(b"\n\ndata: a\n\n\n")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_comment_does_not_wait_for_a_blank_line(end: bytes) -> None:
    """A comment is returned when its line ends; the event after it has its own bytes."""
    decoder = Decoder()
    assert [] == decoder.feed(b": keep")
    assert [Event(b": keepalive" + end, None)] == decoder.feed(b"alive" + end)
    assert [Event(b"data: a" + 2 * end, b"a")] == decoder.feed(b"data: a" + 2 * end)


@pytest.mark.parametrize("unit", [b"\n", b":\n", b": keepalive\n\n", b"\r\n", b":\r"])
def test_a_flood_of_nothing_is_one_event(unit: bytes) -> None:
    """Consecutive comments and blank lines are one event, so the work does not grow with their number."""
    flood = 10_000 * unit
    assert 2 >= len(events := decode(flood))
    assert flood == b"".join(event.raw for event in events)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("begin", [b"data: ", b": ", b"event: "])
def test_a_line_without_an_end_is_not_collected(begin: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that exceeds the limit passes in pieces without data and is not buffered; the next event is parsed."""
    monkeypatch.setattr(sse, "LONGEST", 100)
    decoder = Decoder()
    stream = b"data: 1" + 2 * end + begin + b"x" * 1000 + 2 * end + b"data: 2" + 2 * end
    events = []
    for start in range(0, len(stream), 3):
        events += decoder.feed(stream[start : start + 3])
        assert len(decoder._held) <= 103
    assert [b"1", b"2"] == [event.data for event in events if event.data is not None]
    assert stream == b"".join(event.raw for event in events)
    assert decoder.passed


def test_a_stream_that_ends_in_a_long_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remainder of such an event at the end of the stream has no data either."""
    monkeypatch.setattr(sse, "LONGEST", 10)
    assert [Event(b"data: 1234567", None), Event(b"890", None)] == decode(b"data: 1234567890")


def test_flush_returns_the_incomplete_event() -> None:
    """A flush returns the incomplete last event; a second flush returns nothing."""
    decoder = Decoder()
    decoder.feed(b"data: a\n\ndata: b\n")
    assert [Event(b"data: b\n", b"b")] == decoder.flush()
    assert [] == decoder.flush()


def test_one_event_in_one_read_is_not_copied() -> None:
    """A complete event in one read is not copied."""
    chunk = b"data: a\n\n"
    assert Decoder().feed(chunk)[0].raw is chunk


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200)))
def test_any_chunking_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """The events do not depend on the chunks, and all `raw` joined are the input."""
    assert told(decode(stream)) == told(decode(*split(stream, cuts)))
    assert stream == b"".join(event.raw for event in decode(*split(stream, cuts)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_long_event_in_small_pieces_is_searched_once(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long event in small chunks is searched once: the work is linear."""
    searched = 0
    original = sse._end

    def counting(buffer: bytes, start: int, begin: int, *, returns: bool) -> int:
        nonlocal searched
        searched += len(buffer) - begin
        return original(buffer, start, begin, returns=returns)

    monkeypatch.setattr(sse, "_end", counting)
    stream = b"data: " + b"x" * 100_000 + end + end
    decode(*(stream[start : start + 10] for start in range(0, len(stream), 10)))
    assert searched < 2 * len(stream)


@pytest.mark.parametrize(
    ("raw", "data", "expected"),
    [
        (b"data: old\n\n", b"new", b"data: new\n\n"),
        (b"data:old\n\n", b"new", b"data: new\n\n"),
        (b"data: o\ndata: ld\n\n", b"new", b"data: new\n\n"),
        (b"data: old\n\n", b"n\new", b"data: n\ndata: ew\n\n"),
        (b"event: e\nid: 1\ndata: old\n:c\n\n", b"new", b"event: e\nid: 1\ndata: new\n:c\n\n"),
        (b"data: old\r\nretry: 3\r\n\r\n", b"new", b"data: new\r\nretry: 3\r\n\r\n"),
        (b"data: old\r\r", b"new", b"data: new\n\n"),
        (b"event: e\n\n", b"new", b"event: e\ndata: new\n\n"),
        (b"\n", b"new", b"data: new\n\n"),
        (b"data: old\n", b"new", b"data: new\n"),
        (b"data: old", b"new", b"data: new"),
        (sse.BOM + b"data: old\n\n", b"new", b"data: new\n\n"),
        (b"data\n\n", b"", b"data: \n\n"),
    ],
)
def test_encode(raw: bytes, data: bytes, expected: bytes) -> None:
    """Only the data changes; other fields and their order stay, and so do line ends that are not lone returns."""
    assert expected == sse.encode(data, of=decode(raw)[0])


@given(stream=STREAMS.map(lambda stream: stream.replace(sse.BOM, b"") + b"\n\n"), data=st.binary().filter(lambda data: b"\r" not in data))
def test_encode_round_trip(stream: bytes, data: bytes) -> None:
    """The encoded event has the new data and the old name."""
    event = told(decode(b"data: first\n\n" + stream + b"data\n\n"))[1]
    again = decode(sse.encode(data, of=event))
    assert [(event.event, data)] == [(new.event, new.data) for new in again]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: a", b"data: a\n\n"),
        (b"data: a\n", b"data: a\n\n"),
        (b"data: a\r", b"data: a\r\r"),
        (b"data: a\r\n", b"data: a\r\n\n"),
        (b"data: a\n\n", b"data: a\n\n"),
        (b"data: a\r\n\r\n", b"data: a\r\n\r\n"),
        (b"\n", b"\n"),
    ],
)
def test_finish(raw: bytes, expected: bytes) -> None:
    """An event without its blank line gets one; another event is unchanged."""
    event = decode(raw)[0]
    assert event._replace(raw=expected) == sse.finish(event)


@given(
    lines=st.lists(
        st.sampled_from([b"data: abc", b"data: a b", b"data:", b"data:x", b"data", b": comment", b"id: 1", b"event: e"]),
        min_size=1,
        max_size=6,
    ),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    start=st.integers(0, 30),
    size=st.integers(0, 30),
    bom=st.booleans(),
)
def test_a_part_of_the_data_is_removed(lines: list[bytes], end: bytes, start: int, size: int, bom: bool) -> None:
    """The data loses those bytes, and all other lines and bytes stay. A value that moves to a line without one gets its colon and space."""
    raw = (sse.BOM if bom else b"") + end.join([b"data: first", *lines]) + end + end
    (event,) = decode(raw)
    data = event.data or b""
    first, last = min(start, len(data)), min(start + size, len(data))
    found = sse.without(event, first, last)
    assert data[:first] + data[last:] == found.data
    assert found.data == decode(found.raw)[0].data
    lost = len(raw) - len(found.raw)
    assert any(
        raw == found.raw[:at] + raw[at : at + lost + len(added)] + found.raw[at + len(added) :]
        for added in (b"", b": ", b" ")
        for at in range(len(found.raw) + 1)
        if found.raw.startswith(added, at)
    )


def test_a_value_moves_to_a_line_without_a_colon() -> None:
    """The line gets one, because its name would have another meaning."""
    (event,) = decode(b"data\ndata: abc\n\n")
    assert (b"data: bc\n\n", b"bc") == (sse.without(event, 0, 2).raw, sse.without(event, 0, 2).data)
    (event,) = decode(b"data:\ndata: a b\n\n")
    assert (b"data:  b\n\n", b" b") == (sse.without(event, 0, 2).raw, sse.without(event, 0, 2).data)


def test_a_part_beyond_the_data() -> None:
    """A place after the end of the data is the end of the event."""
    event = Event(b"id: 1\n\n", None)
    assert Event(b"id: 1\n\n", b"") == sse.without(event, 5, 6)
