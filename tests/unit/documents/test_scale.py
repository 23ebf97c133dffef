"""The script of `make scale`: which address of metrics each process gets. tests/e2e/test_scale.py runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import scale

from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variables of the proxy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AZURE_OPENAI_METRICS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "arguments, environ, file, expected",
    [
        ([], {}, "", None),
        ([], {"AZURE_OPENAI_METRICS": "127.0.0.1:9464"}, "", Address("127.0.0.1", 9464)),
        ([], {}, "azure_openai_metrics: '[::1]:9000'", Address("::1", 9000)),
        (["--set", "azure_openai_metrics=:9001"], {"AZURE_OPENAI_METRICS": "127.0.0.1:9464"}, "", Address("", 9001)),
        (["--set=azure_openai_metrics="], {"AZURE_OPENAI_METRICS": "127.0.0.1:9464"}, "", None),
    ],
)
def test_the_configured_address(
    arguments: Sequence[str], environ: Mapping[str, str], file: str, expected: Address | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is found where the proxy finds it: on the command line, in the environment or in the file."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if file:
        (folder / "mitm_config.yaml").write_text(file)
    assert expected == scale.metrics_address(list(arguments))


def test_an_invalid_address() -> None:
    """An invalid address ends the script, as it would end each process."""
    with pytest.raises(SettingsError, match="write HOST:PORT"):
        scale.metrics_address(["--set", "azure_openai_metrics=localhost"])


def test_each_process_gets_the_next_port() -> None:
    """The first process has the configured port, each further one the next; port 0 stays the kernel's choice."""
    address = Address("127.0.0.1", 9464)
    assert [9464, 9465, 9466] == [getattr(scale.following(address, number), "port", None) for number in range(3)]
    assert Address("", 0) == scale.following(Address("", 0), 3)
    assert scale.following(None, 1) is None


def test_the_address_replaces_the_configured_one() -> None:
    """A process is started with its own address and without the common one, in either form of --set."""
    given = ["--set", "azure_openai_metrics=:9464", "--set=azure_openai_metrics=:9464", "--set", "azure_openai_metrics_series=5"]
    command = scale.command(18080, given, Address("127.0.0.1", 9465))
    assert ["azure_openai_metrics=127.0.0.1:9465"] == [word for word in command if "azure_openai_metrics=" in word]
    assert ["--set", "azure_openai_metrics_series=5"] == command[-2:]
    assert given == scale.command(18080, given)[-5:]
