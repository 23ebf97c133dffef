"""The option table and its documents."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from mitmproxy.options import Options
from ruamel.yaml import YAML

from azure_openai_proxy.config import settings as values
from azure_openai_proxy.config import sources
from azure_openai_proxy.config.options import OPTIONS
from support.configuration import gather

pytestmark = pytest.mark.usefixtures("folder")

ROOT = Path(__file__).parents[3]


def test_table() -> None:
    """Every option has a type that all of mitmproxy supports, a default that parses, and help in full sentences."""
    for option in OPTIONS:
        assert option.type in (str, bool) or get_args(option.type) == (str,)
        option.parse(option.default)
        assert option.help.endswith(".")


def test_sample_file() -> None:
    """mitm_config.yaml contains every option, commented out, and is valid and effective once the # are removed."""
    text = (ROOT / "mitm_config.yaml").read_text()
    assert YAML(typ="safe").load(text) is None
    for option in OPTIONS:
        assert f"\n#{option.name}: " in text or f"\n#{option.name}:\n" in text or f"\n# {option.name} names" in text
    lines = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    Path("mitm_config.yaml").write_text("\n".join(lines))
    found, file = gather()
    sources.check_names(file, [*Options().keys(), "store_streamed_bodies"])
    assert "my-gpt-4o" == values.resolve(found).mapper.deployment("gpt-4o")
    for option in OPTIONS:
        if option.default and option.name != "azure_openai_config":
            assert option.default == values._typed(option, found), option.name
