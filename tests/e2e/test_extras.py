"""An installation without the extras: the proxy works, and a setting that needs one says in one line what to install."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from azure_openai_proxy.config.extras import EXTRAS
from support.processes import PATIENCE, SCRIPT, Mitmdump

if TYPE_CHECKING:
    from pathlib import Path

    from azure_simulator import Simulator

WITHOUT = SCRIPT.parents[1] / "tests" / "support" / "recorder" / "without.py"
MODULES = ("azure", "sqlalchemy", "psycopg", "prometheus_client", "opentelemetry", "requests", "google", "aiohttp", "redis", "hiredis")
"""The top-level modules of all extras."""
SETTINGS = {
    "entra": ("azure_openai_entra", "cli"),
    "ledger": ("azure_openai_ledger", "sqlite:///usage.db"),
    "metrics": ("azure_openai_metrics", "127.0.0.1:0"),
    "otel": ("azure_openai_otlp", "http://127.0.0.1:4318"),
    "redis": ("azure_openai_shared_state", "redis://127.0.0.1:6379"),
}


def bare(home: Path, confdir: Path, azure: Simulator, **options: object) -> Mitmdump:
    """A mitmdump without the libraries of any extra."""
    options = {"azure_openai_endpoint": azure.http_url} | options
    return Mitmdump(home, confdir, options=options, env={"WITHOUT": ",".join(MODULES)}, scripts=(WITHOUT, SCRIPT))


def test_every_extra_has_a_setting() -> None:
    """The test covers all extras."""
    assert set(EXTRAS) == set(SETTINGS)


@pytest.mark.parametrize("extra", SETTINGS)
def test_a_setting_without_its_extra(extra: str, azure: Simulator, tmp_path: Path, confdir: Path) -> None:
    """The start ends with one line that names the setting and the command for the installation."""
    name, value = SETTINGS[extra]
    mitmdump = bare(tmp_path, confdir, azure, **{name: value}).launch()
    assert 1 == mitmdump.wait()
    lines = [line for line in mitmdump.output if name in line]
    assert 1 == len(lines), mitmdump.log()
    assert f'pip install ".[{extra}]"' in lines[0]
    assert "Traceback" not in mitmdump.log()


def test_the_core_needs_no_extra(azure: Simulator, tmp_path: Path, confdir: Path) -> None:
    """Without any of the libraries, a chat is answered and the access log has its line."""
    log = tmp_path / "access.log"
    with bare(tmp_path / "home", confdir, azure, azure_openai_access_log=log) as mitmdump:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"authorization": f"Bearer {azure.key}"}
        answer = httpx.post(f"{mitmdump.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)
    assert 200 == answer.status_code
    (line,) = log.read_text().splitlines()
    assert answer.json()["usage"]["prompt_tokens"] == json.loads(line)["input_tokens"]
