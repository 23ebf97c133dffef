"""The directory of clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.clients import Directory
from azure_openai_proxy.config.clients import Client, ClientKey, Group, digest

if TYPE_CHECKING:
    import pytest


def client(name: str, *keys: str, group: str = "") -> Client:
    return Client(name=name, keys=tuple(ClientKey(digest(key)) for key in keys), group=group)


def test_a_client_is_found_by_each_of_its_keys() -> None:
    """Both keys of a rotated client work; another key finds nothing."""
    known = Directory()
    known.use_file([client("a", "sk-a", group="team"), client("b", "sk-b")], [Group(name="team")])
    known.use_managed([client("m", "sk-old", "sk-new")])
    found = [known.find(key) for key in ("sk-a", "sk-old", "sk-new", "sk-x", "")]
    assert ["a", "m", "m", None, None] == [one and one.name for one in found]
    assert (Group(name="team"), None) == (known.group(known.clients["a"]), known.group(known.clients["b"]))
    assert known.group(client("c", "sk-c", group="gone")) is None


def test_a_wrong_key_is_compared_with_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much of a key is right: only its SHA-256 is looked up, so the time of a refusal does not depend on the key."""
    known, compared = Directory(), []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(1)
        return one == other

    known.use_file([client("a", "sk-0123456789abcdef")], [])
    monkeypatch.setattr("hmac.compare_digest", compare)
    assert [None] * 3 == [known.find(key) for key in ("sk-0123456789abcdeX", "sk-", "x")]
    assert [] == compared
    assert known.find("sk-0123456789abcdef")
    assert [1] == compared


def test_the_file_wins_over_the_database(caplog: pytest.LogCaptureFixture) -> None:
    """Of two clients with the same name the file's counts, and one line of the log says so."""
    known = Directory()
    known.use_file([client("a", "sk-file")], [])
    for _ in range(2):
        known.use_managed([client("a", "sk-database")])
    assert (known.clients["a"], None) == (known.find("sk-file"), known.find("sk-database"))
    assert 1 == len(caplog.records)


def test_removing_the_last_client_leaves_keys_required() -> None:
    """A directory that knew a client once still requires keys."""
    known = Directory()
    assert not known.had_clients
    known.use_managed([client("m", "sk-m")])
    known.use_managed([])
    assert (known.had_clients, {}, None) == (True, known.clients, known.find("sk-m"))
