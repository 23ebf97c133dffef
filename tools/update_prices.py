"""Make `accounting/prices.json` from the public price map of LiteLLM: the rows of Azure, in the form of `azure_openai_prices`.

python tools/update_prices.py litellm-1.110.2-py3-none-any.whl --date 2026-11-28

The argument is LiteLLM's wheel, or its file model_prices_and_context_window_backup.json. Only numbers are taken.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "addon" / "azure_openai_proxy" / "accounting" / "prices.json"
MEMBER = "litellm/model_prices_and_context_window_backup.json"
SOURCE = (
    "https://github.com/BerriAI/litellm: model_prices_and_context_window_backup.json, azure/* and azure_ai/*, in USD per million tokens"
)
NOTICE = """MIT License

Copyright (c) 2023 Berri AI

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the \
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, \
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to \
the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF \
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR \
ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH \
THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""

ROUTERS = ("model-router", "model_router")
"""Their rows have the router's fee as the price of the input."""
PARTS = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write_input",
    "output_cost_per_token": "output",
    "input_cost_per_audio_token": "audio_input",
    "cache_read_input_audio_token_cost": "cached_audio_input",
    "output_cost_per_audio_token": "audio_output",
}
TIERS = {"": "", "_priority": "priority", "_flex": "flex", "_batches": "batch"}
_KEY = re.compile(rf"({'|'.join(PARTS)})(?:_above_([0-9]+)k_tokens)?({'|'.join(TIERS)})")
_DATE = re.compile(r"-(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4})$")

type Row = dict[str, Any]


def row(entry: Mapping[str, Any]) -> Row:
    """The prices of one row of the map; empty if it has no prices by token."""
    made: Row = {}
    for key, value in entry.items():
        found = _KEY.fullmatch(key)
        if not found or value is None:
            continue
        at = made if not found[3] else made.setdefault("tiers", {}).setdefault(TIERS[found[3]], {})
        if found[2]:
            at = at.setdefault("above", {}).setdefault(str(int(found[2]) * 1000), {})
        at[PARTS[found[1]]] = _million(value)
    image = entry.get("output_cost_per_image_token")
    if image is not None and "output" not in made and "input" in made:
        made["output"] = _million(image)  # the output tokens of an image model are those of images
    if "input" not in made and "audio_input" not in made:
        return {}
    return made


def models(data: Mapping[str, Any]) -> dict[str, Row]:
    """All models by name; the rows of `azure/` take precedence over those of `azure_ai/`."""
    rows: dict[str, Row] = {}
    zones: dict[str, dict[str, Row]] = {}
    for key, entry in sorted(data.items(), key=lambda item: (not item[0].startswith("azure/"), item[0])):
        provider, _, rest = key.partition("/")
        if provider not in ("azure", "azure_ai") or not (made := row(data.get(entry.get("alias_of"), entry))):
            continue
        zone, slash, name = rest.rpartition("/")
        name = name.lower()
        if name in ROUTERS:
            rows[name] = {"fee": made["input"]}
        elif not slash:
            rows.setdefault(name, made)
        elif zone in ("global", "global-standard"):
            zones.setdefault(name, {}).setdefault("", made)
        elif re.fullmatch("[a-z][a-z-]*", zone):
            zones.setdefault(name, {})[zone] = made
    for name, own in zones.items():
        common = own.pop("", None)
        if own or common:
            entry = rows.setdefault(name, common or {})
            if own:
                entry["zones"] = own
    return _without_repetitions(rows)


def _without_repetitions(rows: dict[str, Row]) -> dict[str, Row]:
    """Give rows of dated names the zones of the name without the date, and remove those that then repeat it.

    A dated row has precedence, so that a zone that only the other row has would be lost. Zones are taken only if the price is the same.
    """
    kept = dict(rows)
    for name, own in rows.items():
        general = rows.get(_DATE.sub("", name))
        if general is None or general is own or any(own.get(part) != general.get(part) for part in PARTS.values()):
            continue
        own_zones, zones = own.get("zones", {}), general.get("zones", {})
        if {**zones, **own_zones}:
            own["zones"] = {**zones, **own_zones}
        if {**own, "zones": 0} == {**general, "zones": 0} and all(zones.get(zone, made) == made for zone, made in own_zones.items()):
            if "zones" in own:
                general["zones"] = own["zones"]
            del kept[name]
    return {name: _ordered(made) for name, made in sorted(kept.items())}


def _ordered(made: Row) -> Row:
    """The prices before the other keys, zones by name."""
    order = [*PARTS.values(), "fee", "above", "tiers", *sorted(set(made) - {*PARTS.values(), "fee", "above", "tiers"})]
    return {key: _ordered(made[key]) if isinstance(made[key], dict) else made[key] for key in order if key in made}


def _million(value: float) -> float:
    return round(value * 1e6, 6)


def document(data: Mapping[str, Any], version: str, date: str) -> str:
    """The data file, with one line for each model."""
    head = {"source": SOURCE, "version": version, "date": date, "license": NOTICE}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(made)}" for name, made in models(data).items())
    return "{\n" + ",\n".join([*lines, f' "models": {{\n{rows}\n }}']) + "\n}\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="LiteLLM's wheel, or the JSON file in it")
    parser.add_argument("--date", default=dt.datetime.now(tz=dt.UTC).date().isoformat(), help="of the prices (default: today)")
    parser.add_argument("--target", type=Path, default=TARGET, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.file.suffix == ".whl":
        with zipfile.ZipFile(asked.file) as wheel:
            content = wheel.read(MEMBER)
    else:
        content = asked.file.read_bytes()
    found = re.match(r"litellm-([0-9.]+)-", asked.file.name)
    asked.target.write_text(
        document(json.loads(content), f"litellm {found[1]}" if found else asked.file.name, asked.date), encoding="utf-8"
    )
    print(f"{asked.target}: {len(models(json.loads(content)))} models")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
