"""The file of `azure_openai_prices`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.config import prices
from azure_openai_proxy.config.prices import HIGHEST, LARGEST_FILE, Level, ModelPrice, PriceFile, Rates, Zone, parse_models, read_file
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = """
models:
  gpt-4o: {input: 2.5, cached_input: 1.25, output: 10}
  GPT-5.4:
    input: 1.25
    above: {272000: {input: 2.5}, "400000": {input: 3}}
    tiers: {flex: {input: 0.625, output: 5}}
    zones: {eu: {input: 1.375, above: {9: {output: 1}}, tiers: {flex: {input: 1}}}}
  router: {fee: 0.14}
"""


def test_all_keys(tmp_path: Path) -> None:
    """Every key of a row is parsed, names in lower case and limits in ascending order."""
    (tmp_path / "prices.yaml").write_text(EXAMPLE)
    file = read_file(str(tmp_path / "prices.yaml"))
    assert file
    assert tmp_path / "prices.yaml" == file.path
    assert {
        "gpt-4o": ModelPrice(Level(Rates(2.5, 1.25, output=10))),
        "gpt-5.4": ModelPrice(
            Level(Rates(1.25), ((272000, Rates(2.5)), (400000, Rates(3)))),
            {"flex": Level(Rates(0.625, output=5))},
            {"eu": Zone(Level(Rates(1.375), ((9, Rates(output=1)),)), {"flex": Level(Rates(1))})},
        ),
        "router": ModelPrice(fee=0.14),
    } == file.models


def test_no_file() -> None:
    """Without the option there is no file."""
    assert read_file("") is None


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "write `models:` and below it one line for each model"),
        (b"models: {}\nmore: 1", "write `models:` and below it one line for each model"),
        (b"models: [gpt-4o]", "models: write a mapping of model names to prices"),
        (b"models:\n  a: {input: 1}\n  a: {input: 2}", "line 3: not YAML"),
        (b"models: {a: {input: 2024-99-99}}", "not YAML"),
        (b"[" * 500, "not YAML"),
        (b"\xff", "it is not UTF-8"),
        (b"models:\n  a: &a {input: 1}\n  b: *a", "line 3: it has an alias (*): write the prices of each model"),
        (b"a: &a {b: 1}\nmodels: {a: {<<: [*a, *a]}}", "line 2: it has an alias"),
        (b"models: {a: {input: .nan}}", "a: input: write USD per million tokens, a number from 0 to 1000000, as in 2.5"),
        (b"models: {a: {input: 1e999}}", "a: input: write USD"),
    ],
)
def test_invalid_files(content: bytes, message: str, tmp_path: Path) -> None:
    """An invalid file is rejected with one line that names the file, the place and the valid form."""
    (tmp_path / "prices.yaml").write_bytes(content)
    with pytest.raises(SettingsError) as error:
        read_file(str(tmp_path / "prices.yaml"))
    assert str(error.value).startswith(f"{tmp_path / 'prices.yaml'}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prices that a thread has parsed, and the error of an invalid file, are not parsed again on the event loop."""
    path = tmp_path / "prices.yaml"

    def read_after(content: str) -> PriceFile | None:
        path.write_text(content)
        prices.preload(path)
        with monkeypatch.context() as patched:
            patched.delattr(prices, "_parsed")
            return read_file(str(path))

    found = read_after("models: {one: {input: 1}}")
    assert found
    assert ["one"] == list(found.models)
    with pytest.raises(SettingsError, match="two: input is missing"):
        read_after("models: {two: {}}")


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing or too large file is rejected."""
    with pytest.raises(SettingsError, match=r"none\.yaml cannot be read: No such file"):
        read_file(str(tmp_path / "none.yaml"))
    (tmp_path / "large.yaml").write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(SettingsError, match=r"large\.yaml is larger than 256 kB"):
        read_file(str(tmp_path / "large.yaml"))


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe_or_a_directory(tmp_path: Path) -> None:
    """Neither is opened: a pipe would wait for its writer."""
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "it is not a regular file"), (tmp_path, "it is a directory")):
        with pytest.raises(SettingsError, match=f"^{path} cannot be read: {reason}$"):
            read_file(str(path))


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_world_writable_file(tmp_path: Path) -> None:
    """A file that all users may write is rejected, like the configuration file."""
    (tmp_path / "prices.yaml").write_text(EXAMPLE)
    (tmp_path / "prices.yaml").chmod(0o666)
    with pytest.raises(SettingsError, match=r"prices\.yaml is not used: all users may write it \(chmod o-w\)"):
        read_file(str(tmp_path / "prices.yaml"))


@pytest.mark.parametrize(
    "raw, message",
    [
        ({4: {"input": 1}}, "models: 4 is not a model's name: write it in quotes"),
        ({"": {"input": 1}}, "models: '' is not a model's name"),
        ({"a\n": {"input": 1}}, r"models: 'a\n' is not a model's name"),
        ({"a" * 201: {"input": 1}}, "is not a model's name"),
        ({"a": {"input": 1}, "A": {"input": 1}}, "models: A is there twice, because upper and lower case are the same"),
        ({"a": 2.5}, "a: write a mapping, as in {input: 2.5, output: 10}"),
        ({"a": {"imput": 1}}, "a: 'imput' is not a key: did you mean input?"),
        ({"a": {"cost": 1}}, "a: 'cost' is not a key: write input, cached_input,"),
        ({"a": {7: 1}}, "a: 7 is not a key"),
        ({"a": {"output": 1}}, "a: input is missing"),
        ({"a": {"input": -1}}, "a: input: write USD per million tokens"),
        ({"a": {"input": HIGHEST * 2}}, "a: input: write USD per million tokens"),
        ({"a": {"input": True}}, "a: input: write USD per million tokens"),
        ({"a": {"input": "2.5"}}, "a: input: write USD per million tokens"),
        ({"a": {"input": None}}, "a: input: write USD per million tokens"),
        ({"a": {"input": 1, "fee": "x"}}, "a: fee: write USD per million tokens"),
        ({"a": {"input": 1, "above": 5}}, "a: above: write a number of input tokens and its prices"),
        ({"a": {"input": 1, "above": {0: {"input": 1}}}}, "a: above: write a number of input tokens"),
        ({"a": {"input": 1, "above": {True: {"input": 1}}}}, "a: above: write a number of input tokens"),
        ({"a": {"input": 1, "above": {10**15: {"input": 1}}}}, "a: above: write a number of input tokens"),
        ({"a": {"input": 1, "above": {9: {"fee": 1}}}}, "a: above: 9: 'fee' is not a key"),
        ({"a": {"input": 1, "tiers": [1]}}, "a: tiers: write a mapping of names to prices, as in {priority: {input: 5, output: 20}}"),
        ({"a": {"input": 1, "tiers": {1: {}}}}, "a: tiers: write a mapping of names to prices"),
        ({"a": {"input": 1, "tiers": {"flex": {"input": -1}}}}, "a: tiers: flex: input: write USD"),
        ({"a": {"input": 1, "tiers": {"flex": {"zones": {}}}}}, "a: tiers: flex: 'zones' is not a key"),
        ({"a": {"input": 1, "zones": "eu"}}, "a: zones: write a mapping of names to prices, as in {eu: {input: 1.4, output: 11}}"),
        ({"a": {"input": 1, "zones": {"E U": {}}}}, "a: zones: E U: write a zone of lower case letters"),
        ({"a": {"input": 1, "zones": {"eu": {"zones": {}}}}}, "a: zones: eu: 'zones' is not a key"),
        ({"a": {"input": 1, "zones": {"eu": {"tiers": {"flex": 1}}}}}, "a: zones: eu: tiers: flex: write a mapping"),
    ],
)
def test_invalid_rows(raw: Any, message: str) -> None:
    """An invalid row is rejected with the model, the key and the valid form."""
    with pytest.raises(SettingsError) as error:
        parse_models(raw)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
