"""The bindings of sessions to backends."""

from __future__ import annotations

from azure_openai_proxy.routing import sessions
from azure_openai_proxy.routing.sessions import Sessions

HOUR = 3600.0


def test_a_binding_moves_and_ends() -> None:
    """A binding is written when a backend serves, moves to another one, and ends when its backend fails."""
    bound = Sessions(lambda: 0.0)
    assert () == bound.backends(b"1", HOUR)
    bound.served(b"1", "a", 10)
    bound.served(b"1", "b", 10)
    bound.failed(b"1", "a")
    bound.failed(b"2", "a")
    assert ("b",) == bound.backends(b"1", HOUR)
    bound.failed(b"1", "b")
    assert ((), 0) == (bound.backends(b"1", HOUR), len(bound))


def test_earlier_backends() -> None:
    """The backends before are remembered, the last one first, until they fail."""
    bound = Sessions(lambda: 0.0)
    for backend in "abcbd":
        bound.served(b"1", backend, 10)
    assert ("d", "b", "c") == bound.backends(b"1", HOUR)
    bound.failed(b"1", "b")
    bound.failed(b"1", "a")
    assert ("d", "c") == bound.backends(b"1", HOUR)


def test_a_binding_expires() -> None:
    """The time-out begins anew with each request."""
    now = 0.0
    bound = Sessions(lambda: now)
    bound.served(b"1", "a", 10)
    now = HOUR
    assert ("a",) == bound.backends(b"1", HOUR)
    bound.served(b"1", "a", 10)
    now = 2 * HOUR
    assert ("a",) == bound.backends(b"1", HOUR)
    now += 1
    assert ((), 0) == (bound.backends(b"1", HOUR), len(bound))


def test_the_oldest_binding_is_evicted() -> None:
    """The number of bindings is bounded; the session that was served least recently loses its own."""
    bound = Sessions()
    for key in (b"1", b"2", b"1", b"3"):
        bound.served(key, "a", 2)
    assert (("a",), (), ("a",)) == tuple(bound.backends(key, HOUR) for key in (b"1", b"2", b"3"))


def test_keys() -> None:
    """A session belongs to one client and one model."""
    keys = {sessions.key(b"c", "m", b"i"), sessions.key(b"d", "m", b"i"), sessions.key(b"c", "n", b"i"), sessions.key(b"c", None, b"i")}
    assert len(keys) == 4
    assert {16} == set(map(len, keys))
