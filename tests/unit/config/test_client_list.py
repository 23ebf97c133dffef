"""The lists `azure_openai_clients` and `azure_openai_client_groups` in the configuration file."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.config import client_list
from azure_openai_proxy.config.clients import Budget, Client, ClientKey, Group, Limits, digest
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-0123456789"
A = {"name": "a", "key": KEY}


def parse(*entries: Any) -> tuple[Client, ...]:
    return client_list.parse(list(entries), [Group(name="team")], ["east", "west"])


def test_a_client() -> None:
    """Each key of the list has its effect."""
    assert (Client(name="a", keys=(ClientKey(digest(KEY)),)),) == parse(A)
    (client,) = parse(
        A
        | {
            "models": ["gpt-*"],
            "requests_per_minute": 1,
            "tokens_per_minute": 2,
            "max_parallel": 3,
            "budget_usd": 4,
            "budget_period": "week",
        }
        | {"group": "team", "expires": dt.date(2026, 12, 31), "backends": "east", "disabled": False, "unmetered": True}
    )
    assert (("gpt-*",), Limits(1, 2, 3), Budget(4.0, "week"), "team") == (client.models, client.limits, client.budget, client.group)
    assert (dt.datetime(2026, 12, 31, tzinfo=dt.UTC), ("east",)) == (client.expires, client.backends)
    assert (False, True) == (client.disabled, client.unmetered)
    assert Budget(0.5, "month") == parse(A | {"budget_usd": 0.5})[0].budget


def test_the_forms_of_a_key(tmp_path: Path) -> None:
    """A file, and a SHA-256, mean the same key as its text."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    hashed = digest(KEY).hex()
    for form in ({"key": KEY}, {"key_file": str(file)}, {"key_sha256": hashed}, {"key_sha256": f"sha256:{hashed.upper()}"}):
        assert digest(KEY) == parse({"name": "a"} | form)[0].keys[0].sha256
    assert [file] == list(client_list.files([{"key_file": str(file)}, {"key_file": 7}, "odd"]))
    assert [] == list(client_list.files(None))


def test_an_empty_key_file(tmp_path: Path) -> None:
    """It has no key."""
    file = tmp_path / "key"
    file.touch()
    with pytest.raises(SettingsError, match="a: key_file: it is empty"):
        parse({"name": "a", "key_file": str(file)})


def test_the_shortest_key(tmp_path: Path) -> None:
    """It has eight characters, in a file too, without the line break."""
    file = tmp_path / "key"
    file.write_text("12345678\n")
    assert digest("12345678") == parse({"name": "a", "key_file": str(file)})[0].keys[0].sha256
    file.write_text("1234567\n")
    with pytest.raises(SettingsError, match="a: key_file: it is too short"):
        parse({"name": "a", "key_file": str(file)})


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_world_writable_key_file(tmp_path: Path) -> None:
    """A file that all users may write is rejected."""
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o666)
    with pytest.raises(SettingsError, match="all users may write it"):
        parse({"name": "a", "key_file": str(file)})


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        ({"name": "a b"}, "client 1: write a name"),
        ({"kye": "x"}, "a: kye is not a key: did you mean key?"),
        ({"zzzz": "x"}, "a: zzzz is not a key: write name, key"),
        ({"sk-0123456789-0123456789-0123456789-012345": "x"}, "a: one of its keys is unknown"),
        ({"key": None}, "a: write its key"),
        ({"key_file": "x"}, "a: key and key_file: write one of them"),
        ({"key": 7}, "a: key: write text"),
        ({"key": " "}, "a: key: write text"),
        ({"key": "a b"}, "a: key: it has a space"),
        ({"key": "x"}, "a: key: it is too short: write a random key of at least 8 characters"),
        ({"key": "1234567"}, "a: key: it is too short"),
        ({"key": None, "key_file": "/nowhere/key"}, "a: key_file: /nowhere/key cannot be read"),
        ({"key": None, "key_file": "sk-0123456789abcdef"}, "a: key_file: the file cannot be read"),
        ({"key": None, "key_file": "/dev/null"}, "a: key_file: /dev/null cannot be read: it is not a regular file"),
        ({"key": None, "key_sha256": "abc"}, "a: key_sha256: write the SHA-256"),
        ({"models": []}, "a: models: write a list of names"),
        ({"models": [1]}, "a: models: write a list of names"),
        ({"requests_per_minute": 0}, "a: requests_per_minute: write a whole number from 1"),
        ({"tokens_per_minute": True}, "a: tokens_per_minute: write a whole number from 1"),
        ({"max_parallel": "2"}, "a: max_parallel: write a whole number from 1"),
        ({"budget_usd": "5"}, "a: budget_usd: write an amount in USD"),
        ({"budget_usd": -1}, "a: budget_usd: write an amount in USD"),
        ({"budget_period": "year"}, "a: budget_period: write day, week, month or total"),
        ({"budget_period": "day"}, "a: budget_period: write budget_usd too"),
        ({"group": "taem"}, "a: group: there is no group taem: did you mean team?"),
        ({"backends": ["north"]}, "a: backends: there is no backend north: write east, west"),
        ({"expires": "soon"}, "a: expires: write a date"),
        ({"disabled": "yes"}, "a: disabled: write true or false"),
        ({"disabled": 1}, "a: disabled: write true or false"),
        ({"unmetered": 1}, "a: unmetered: write true or false"),
        ({"unmetered": 0.0}, "a: unmetered: write true or false"),
        ({"group": KEY}, "a: group: there is no group ..."),
    ],
)
def test_invalid_clients(entry: dict[str, Any], right: str) -> None:
    """An invalid entry is rejected in one line that names the client and the valid values, without any key."""
    with pytest.raises(SettingsError) as caught:
        parse(A | entry)
    assert str(caught.value).startswith(right)
    assert "0123456789" not in str(caught.value)


def test_names_and_keys_are_given_once() -> None:
    """A duplicate name, and a key of two clients, are rejected."""
    with pytest.raises(SettingsError, match="a: there are two clients of this name"):
        parse(A, A)
    with pytest.raises(SettingsError, match="b: it has the key of a"):
        parse(A, A | {"name": "b"})
    with pytest.raises(SettingsError, match="group: there is no group x: add it to azure_openai_client_groups"):
        client_list.parse([A | {"group": "x"}], [], [])


@pytest.mark.parametrize("raw", [{}, ["a"], "a"])
def test_invalid_lists(raw: object) -> None:
    """A value that is not a list of mappings is rejected."""
    with pytest.raises(SettingsError, match="write a list of clients, each with a name and a key"):
        client_list.parse(raw, [], [])


def test_groups() -> None:
    """A group has limits and a budget, and neither a key nor rights."""
    found = client_list.parse_groups([{"name": "team", "max_parallel": 2, "budget_usd": 1, "budget_period": "total"}])
    assert (Group(name="team", limits=Limits(max_parallel=2), budget=Budget(1.0, "total")),) == found
    with pytest.raises(SettingsError, match="team: key is not a key"):
        client_list.parse_groups([{"name": "team", "key": KEY}])
    with pytest.raises(SettingsError, match="team: there are two groups of this name"):
        client_list.parse_groups([{"name": "team"}, {"name": "team"}])


def test_words_of_options() -> None:
    """Other words are rejected with the valid ones."""
    assert ("optional", "allow") == (client_list.parse_auth("optional"), client_list.parse_unpriced("allow"))
    with pytest.raises(SettingsError, match="write required, optional or off"):
        client_list.parse_auth("yes")
    with pytest.raises(SettingsError, match="write refuse or allow"):
        client_list.parse_unpriced("yes")
