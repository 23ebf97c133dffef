"""The script that makes the built-in price table."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import update_prices

from azure_openai_proxy.config.prices import parse_models

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = {"input_cost_per_token": 2e-6, "output_cost_per_token": 1e-5}


def models(**rows: Any) -> dict[str, Any]:
    return update_prices.models({key.replace("__", "/").replace("_2", "-2"): value for key, value in rows.items()})


def test_all_parts_and_tiers() -> None:
    """Prices by token become prices by million tokens, with their tiers and limits; other keys are left out."""
    entry = {
        **PLAIN,
        "cache_read_input_token_cost": 2e-7,
        "cache_creation_input_token_cost_priority": 5e-6,
        "input_cost_per_token_above_272k_tokens": 4e-6,
        "output_cost_per_token_above_272k_tokens_batches": 7.5e-6,
        "input_cost_per_token_flex": None,
        "output_cost_per_audio_token": 8e-5,
        "input_cost_per_image_token": 1,
        "mode": "chat",
    }
    assert {
        "input": 2.0,
        "cached_input": 0.2,
        "output": 10.0,
        "audio_output": 80.0,
        "above": {"272000": {"input": 4.0}},
        "tiers": {"priority": {"cache_write_input": 5.0}, "batch": {"above": {"272000": {"output": 7.5}}}},
    } == models(azure__a=entry)["a"]


def test_rows_without_prices_by_token() -> None:
    """Rows that are priced by image, second or character are left out, and so are other providers."""
    rows = {"azure__tts": {"input_cost_per_character": 1}, "azure__hd__1024-x-1024__dall-e-3": PLAIN, "openai__a": PLAIN}
    assert {} == models(**rows)


def test_image_output() -> None:
    """The output tokens of an image model are those of images."""
    row = {"input_cost_per_token": 5e-6, "output_cost_per_image_token": 4e-5}
    assert {"a": {"input": 5.0, "output": 40.0}} == models(azure__a=row)


def test_zones_aliases_and_routers() -> None:
    """Zones become a part of their model, an alias has its target's prices, a router its fee, and azure/ precedes azure_ai/."""
    dear = {"input_cost_per_token": 9e-6}
    found = models(
        azure__a=PLAIN,
        azure__eu__a=dear,
        azure__global__a=dear,
        azure__global__b=PLAIN,
        azure__us__c=dear,
        azure_ai__A=dear,
        azure_ai__D=dear,
        azure__e={"alias_of": "azure/a"},
        azure__model_router={"input_cost_per_token": 1.4e-7},
    )
    assert {
        "a": {"input": 2.0, "output": 10.0, "zones": {"eu": {"input": 9.0}}},
        "b": {"input": 2.0, "output": 10.0},
        "c": {"zones": {"us": {"input": 9.0}}},
        "d": {"input": 9.0},
        "e": {"input": 2.0, "output": 10.0},
        "model_router": {"fee": 0.14},
    } == found


def test_dated_names() -> None:
    """A dated row with the prices of the undated one is left out and leaves its zones to it; one with other prices stays."""
    dear, tiered = {"input_cost_per_token": 9e-6}, PLAIN | {"input_cost_per_token_flex": 1e-6}
    rows = {
        "azure/a": PLAIN,
        "azure/a-2025-01-01": PLAIN,
        "azure/a-2025-02-02": dear,
        "azure/a-2025-03-03": tiered,
        "azure/a-2025-04-04": PLAIN,
        "azure/eu/a": dear,
        "azure/us/a-2025-01-01": dear,
        "azure/eu/a-2025-04-04": PLAIN,
    }
    eu, plain = {"eu": {"input": 9.0}}, {"input": 2.0, "output": 10.0}
    found = update_prices.models(rows)
    assert {"a", "a-2025-02-02", "a-2025-03-03", "a-2025-04-04"} == found.keys()
    assert plain | {"zones": eu | {"us": {"input": 9.0}}} == found["a"]
    assert {"input": 9.0} == found["a-2025-02-02"]
    assert {"input": 1.0} == found["a-2025-03-03"]["tiers"]["flex"]
    assert {"input": 9.0} == found["a-2025-03-03"]["zones"]["eu"]
    assert plain == found["a-2025-04-04"]["zones"]["eu"]


def test_the_file(tmp_path: Path) -> None:
    """The script reads a wheel or the JSON file and writes a file that the proxy can read, with the version and the date."""
    data = json.dumps({"azure/a": PLAIN})
    with zipfile.ZipFile(tmp_path / "litellm-1.2.3-py3-none-any.whl", "w") as wheel:
        wheel.writestr(update_prices.MEMBER, data)
    (tmp_path / "map.json").write_text(data)
    target = tmp_path / "prices.json"
    for name, version in (("litellm-1.2.3-py3-none-any.whl", "litellm 1.2.3"), ("map.json", "map.json")):
        assert 0 == update_prices.main([str(tmp_path / name), "--date", "2026-11-28", "--target", str(target)])
        written = json.loads(target.read_text())
        assert (version, "2026-11-28") == (written["version"], written["date"])
        assert 2.0 == parse_models(written["models"])["a"].level.rates.input
