"""Prices of models: the values, and the file of `azure_openai_prices`, in USD per million tokens.

    models:
      gpt-4o: {input: 2.5, cached_input: 1.25, output: 10}
      gpt-5.4:
        input: 1.25
        output: 10
        above: {272000: {input: 2.5, output: 15}}
        tiers: {priority: {input: 2.5, output: 20}, batch: {input: 0.625, output: 5}}
        zones: {eu: {input: 1.375, output: 11, tiers: {priority: {input: 2.75, output: 22}}}}
      model-router: {fee: 0.14}

The prices that the package contains (`accounting/prices.json`) have the same form.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

from . import file_trust

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["PARTS", "ZONE", "Level", "ModelPrice", "PriceFile", "Rates", "Zone", "parse_models", "preload", "read_file"]

PARTS = ("input", "cached_input", "cache_write_input", "output", "audio_input", "cached_audio_input", "audio_output")
ZONE = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")
LARGEST_FILE = 256 << 10  # bytes; 300 models take about 60 kB
HIGHEST = 1_000_000  # USD per million tokens
_NAME_LENGTH = 200


class Rates(NamedTuple):
    """USD per million tokens of each kind. None: no price of its own."""

    input: float | None = None
    cached_input: float | None = None
    cache_write_input: float | None = None
    output: float | None = None
    audio_input: float | None = None
    cached_audio_input: float | None = None
    audio_output: float | None = None


class Level(NamedTuple):
    """Prices, and those of requests with more input tokens than a limit: (limit, prices), by ascending limit."""

    rates: Rates = Rates()
    above: tuple[tuple[int, Rates], ...] = ()


class Zone(NamedTuple):
    """Prices in one data zone."""

    level: Level = Level()
    tiers: Mapping[str, Level] = {}


class ModelPrice(NamedTuple):
    """All prices of a model."""

    level: Level = Level()
    tiers: Mapping[str, Level] = {}  # by service tier; `batch` for batches
    zones: Mapping[str, Zone] = {}
    fee: float | None = None  # for each million input tokens, on top: a model router's


class PriceFile(NamedTuple):
    """The file of `azure_openai_prices`."""

    path: Path
    models: Mapping[str, ModelPrice]  # by name in lower case


def read_file(name: str) -> PriceFile | None:
    """Read the file of `azure_openai_prices`; None if `name` is "".

    Raises:
        SettingsError: it cannot be used. The message names the place, the fault and the valid values.
    """
    if not name:
        return None
    path = expanded(name)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SettingsError(f"{path} is larger than {LARGEST_FILE >> 10} kB")
        content = file_trust.read(path, os.environ)
    except file_trust.Untrusted as error:
        raise SettingsError(f"{path} is not used: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    models = _result(content)
    if isinstance(models, str):
        raise SettingsError(f"{path}: {models}")
    return PriceFile(path, models)


def preload(path: Path) -> None:
    """Parse a changed file, which takes a second for 300 models. `read_file` then has the result at once. Called in a thread."""
    with contextlib.suppress(SettingsError):
        read_file(str(path))


@functools.lru_cache(maxsize=1)  # all settings are parsed again when any of them changes
def _result(content: bytes) -> Mapping[str, ModelPrice] | str:
    """The prices, or the message of the error."""
    try:
        return _parsed(content)
    except SettingsError as error:
        return str(error)


class _AliasError(ComposerError):
    pass


class _Composer(Composer):
    """Rejects aliases, with which a small file can have values of any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            raise _AliasError(problem_mark=self.parser.peek_event().start_mark)
        return super().compose_node(parent, index)


def _parsed(content: bytes) -> Mapping[str, ModelPrice]:
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Composer = _Composer
        values = yaml.load(content.decode())
    except UnicodeDecodeError:
        raise SettingsError("it is not UTF-8") from None
    except _AliasError as error:
        raise SettingsError(f"line {error.problem_mark.line + 1}: it has an alias (*): write the prices of each model") from None
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise SettingsError(f"{place}not YAML: write `models:` and below it `name: {{input: 2.5, output: 10}}` lines, each once") from None
    if not isinstance(values, dict) or set(values) != {"models"}:
        raise SettingsError("write `models:` and below it one line for each model, as in `gpt-4o: {input: 2.5, output: 10}`")
    return parse_models(values["models"])


def parse_models(raw: object) -> dict[str, ModelPrice]:
    """Parse the mapping of models to prices. Names are converted to lower case.

    Raises:
        SettingsError: the message names the model and the key.
    """
    if not isinstance(raw, dict):
        raise SettingsError("models: write a mapping of model names to prices, as in `gpt-4o: {input: 2.5, output: 10}`")
    models: dict[str, ModelPrice] = {}
    for name, value in raw.items():
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH or not name.isprintable():
            raise SettingsError(f"models: {_shown(name)} is not a model's name: write it in quotes")
        if name.lower() in models:
            raise SettingsError(f"models: {name} is there twice, because upper and lower case are the same")
        models[name.lower()] = _model(name, value)
    return models


def _model(name: str, raw: object) -> ModelPrice:
    entry = _mapping(raw, name, (*PARTS, "fee", "above", "tiers", "zones"))
    price = ModelPrice(
        _level(entry, name),
        _tiers(entry, name),
        {zone: Zone(_level(value, where), _tiers(value, where)) for zone, value, where in _zones(entry, name)},
        _number(entry["fee"], f"{name}: fee") if "fee" in entry else None,
    )
    if price.level.rates.input is None and price.fee is None and not price.zones:
        raise SettingsError(f"{name}: input is missing: write a price for each million input tokens, as in {{input: 2.5, output: 10}}")
    return price


def _zones(entry: Mapping[str, Any], name: str) -> list[tuple[str, Mapping[str, Any], str]]:
    found = []
    for zone, value in _named(entry, "zones", name):
        where = f"{name}: zones: {zone}"
        if not ZONE.fullmatch(zone):
            raise SettingsError(f"{where}: write a zone of lower case letters, digits and hyphens, as in us or eu")
        found.append((zone, _mapping(value, where, (*PARTS, "above", "tiers")), where))
    return found


def _tiers(entry: Mapping[str, Any], where: str) -> dict[str, Level]:
    tiers = {}
    for tier, value in _named(entry, "tiers", where):
        place = f"{where}: tiers: {tier}"
        tiers[tier] = _level(_mapping(value, place, (*PARTS, "above")), place)
    return tiers


def _named(entry: Mapping[str, Any], key: str, where: str) -> list[tuple[str, object]]:
    """The items of a mapping of names to prices."""
    raw = entry.get(key, {})
    example = "eu: {input: 1.4, output: 11}" if key == "zones" else "priority: {input: 5, output: 20}"
    if not isinstance(raw, dict) or not all(isinstance(name, str) and 0 < len(name) <= 40 and name.isprintable() for name in raw):
        raise SettingsError(f"{where}: {key}: write a mapping of names to prices, as in {{{example}}}")
    return list(raw.items())


def _level(entry: Mapping[str, Any], where: str) -> Level:
    raw = entry.get("above", {})
    example = "above: write a number of input tokens and its prices, as in {272000: {input: 5, output: 20}}"
    if not isinstance(raw, dict):
        raise SettingsError(f"{where}: {example}")
    above = {}
    for limit, value in raw.items():
        if isinstance(limit, bool) or not re.fullmatch("[1-9][0-9]{0,11}", str(limit)):
            raise SettingsError(f"{where}: {example}")
        place = f"{where}: above: {limit}"
        above[int(limit)] = _rates(_mapping(value, place, PARTS), place)
    return Level(_rates(entry, where), tuple(sorted(above.items())))


def _rates(entry: Mapping[str, Any], where: str) -> Rates:
    return Rates(**{part: _number(entry[part], f"{where}: {part}") for part in PARTS if part in entry})


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= HIGHEST:
        raise SettingsError(f"{where}: write USD per million tokens, a number from 0 to {HIGHEST}, as in 2.5")
    return float(value)


def _mapping(raw: object, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise SettingsError(f"{where}: write a mapping, as in {{input: 2.5, output: 10}}")
    for key in raw:
        if key not in keys:
            near = difflib.get_close_matches(str(key).lower(), keys, 1, 0.6)
            right = f"did you mean {near[0]}?" if near else f"write {', '.join(keys[:-1])} or {keys[-1]}"
            raise SettingsError(f"{where}: {_shown(key)} is not a key: {right}")
    return raw


def _shown(value: object) -> str:
    return ascii(value)[:60]
