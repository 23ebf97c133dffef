"""Reading a few headers at once."""

from __future__ import annotations

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.accounting.header_values import LONGEST_LIST, MOST_LISTS, Wanted, header_values


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ((b"Host", b"a"), (b"User-Agent", b"curl")),
        ((b"user-agent", b"one"), (b"X-Other", b"b"), (b"USER-AGENT", b"two")),
        ((b"x-session-id", b"\xff\xc3\xa9"), (b"user-agent", b"")),
    ],
)
def test_the_values_are_those_of_get(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """Each wanted header that is there has the value that `Headers.get` returns, also the second time; no other header is read."""
    headers, names = Headers(fields), ("user-agent", "x-session-id")
    wanted = Wanted(*names)
    expected = {name: headers[name] for name in names if name in headers}
    assert [expected, expected] == [header_values(headers.fields, wanted), header_values(fields, wanted)]


def test_a_prefix() -> None:
    """Headers with the prefix are found under their whole names."""
    headers = ((b"X-Ms-Spillover-From-A", b"1"), (b"x-ms-region", b"b"), (b"id", b"3"))
    assert {"x-ms-spillover-from-a": "1", "id": "3"} == header_values(headers, Wanted("id", prefix="x-ms-spillover-"))


def test_the_same_names_with_other_values() -> None:
    """Only the places of headers are remembered."""
    wanted = Wanted("id")
    assert ["1", "2"] == [header_values(((b"a", b""), (b"ID", value)), wanted)["id"] for value in (b"1", b"2")]
    assert 1 == len(wanted.places)


def test_the_memory_is_bounded() -> None:
    """Neither many lists of names nor long ones fill it."""
    wanted = Wanted("id")
    for number in range(2 * MOST_LISTS):
        header_values(((str(number).encode(), b""),), wanted)
    assert 0 < len(wanted.places) <= MOST_LISTS
    wanted.places.clear()
    assert {"id": "1"} == header_values(((b"a" * LONGEST_LIST, b""), (b"id", b"1")), wanted)
    assert {} == wanted.places
