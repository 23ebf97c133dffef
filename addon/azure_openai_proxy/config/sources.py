"""The sources of settings: command line, environment and configuration files."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from mitmproxy.tools import cmdline
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

from . import backends as backends_config
from . import client_list, file_trust
from .options import BY_NAME, FILE, MASK, NAMES, OPTIONS
from .settings import Found

if TYPE_CHECKING:
    from mitmproxy.optmanager import OptManager


__all__ = ["ConfigFile", "Given", "check_names", "command_line", "gather"]


LISTS = {backends_config.NAME: "backends", client_list.NAME: "clients", client_list.GROUPS: "groups of clients"}
"""The settings that are lists, in words."""
MIN_SIMILARITY = 0.85
"""Least similarity of an unknown name to one of `NAMES` to be reported. Other scripts also have options."""


class Given(NamedTuple):
    """The options that the command line sets."""

    sets: Mapping[str, Sequence[str]] = {}  # --set name=value: all values of a name
    names: frozenset[str] = frozenset()  # all options that it sets, including mitmproxy's own flags
    modes: Sequence[str] = ()  # --mode

    @property
    def listens(self) -> bool:
        """Whether the command line sets the listen address."""
        return not self.names.isdisjoint({"listen_host", "listen_port"}) or any("@" in mode for mode in self.modes)


class ConfigFile(NamedTuple):
    path: Path | None = None
    values: Mapping[str, object] = {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def command_line(arguments: Sequence[str], options: OptManager) -> Given:
    """Parse mitmproxy's arguments. Other arguments, as of a program that embeds mitmproxy, yield an empty result."""
    parser = _Parser(add_help=False)
    cmdline.common_options(parser, options)
    for name in ("web_open_browser", "web_port", "web_host", "flow_detail", "console_layout", "intercept", "view_filter"):
        options.make_parser(parser, name)
    try:
        found, _ = parser.parse_known_args(list(arguments))
    except SettingsError:
        return Given()
    sets: dict[str, list[str]] = {}
    for text in found.setoptions:
        name, equals, value = text.partition("=")
        sets.setdefault(name, []).extend([value] if equals else [])
    flags = {name for name, value in vars(found).items() if value is not None and name in options}
    if found.quiet or found.verbose:
        flags |= {"termlog_verbosity", "flow_detail"}
    return Given(sets, frozenset(sets) | flags, [*(found.mode or []), *sets.get("mode", [])])


def gather(
    given: Given,
    environ: Mapping[str, str],
    confdir: str,
    *,
    deferred: Mapping[str, object] | None = None,
    changed: Mapping[str, Found] | None = None,
) -> tuple[dict[str, Found], ConfigFile]:
    """Merge all sources by precedence. An option set to nothing by --set has its default, regardless of other sources.

    `deferred` are values that mitmproxy received before the addon declared its options. `changed` are values set while running.

    Raises:
        SettingsError: a file cannot be used, or has an unknown option.
    """
    weak = dict(deferred or {})
    weak_where = "mitmproxy's config.yaml"
    for name in ("config.yaml", "config.yml"):
        if (path := expanded(confdir) / name).is_file():
            weak |= _read(path, environ)
            weak_where = str(path)
    _check_set([*given.sets], "--set")
    _check_set([*weak], weak_where)
    levels = [_from_file(weak, weak_where), _from_environment(environ), _from_command_line(given), changed or {}]
    config = _over(*levels).get("azure_openai_config")
    path = expanded(str(config.raw).strip()) if config else Path(FILE)
    if config and not path.is_file():
        raise SettingsError(f"azure_openai_config ({config.where}): there is no file {path}")
    file = ConfigFile(path, _read(path, environ)) if path.is_file() else ConfigFile()
    # `check_names` needs all of mitmproxy's options for the other names
    _check_set([name for name in file.values if name.lower().startswith("azure")], str(path), NAMES | LISTS.keys())
    if "azure_openai_config" in file.values:
        raise SettingsError(f"azure_openai_config ({path}): it names this file: set AZURE_OPENAI_CONFIG or --set azure_openai_config=FILE")
    return _over(levels[0], _from_file(file.values, str(path)), _lists(file, environ), *levels[1:]), file


def _lists(file: ConfigFile, environ: Mapping[str, str]) -> dict[str, Found]:
    """The lists of backends and clients, which only the file can contain."""
    where = str(file.path)
    return {
        name: Found(backends_config.expand(raw, environ, where, name), where)
        for name in LISTS
        if (raw := file.values.get(name)) is not None
    }


def _over(*levels: Mapping[str, Found]) -> dict[str, Found]:
    """Merge sources. Later ones take precedence."""
    merged: dict[str, Found] = {}
    for level in levels:
        merged |= level
    return {name: found for name, found in merged.items() if not _is_unset(found.raw)}


def _is_unset(raw: object) -> bool:
    text = raw.strip() if isinstance(raw, str) else raw
    return text is None or text in ("", MASK) or text in ([], (), {})


def _from_file(values: Mapping[str, object], where: str) -> dict[str, Found]:
    return {name: Found(values[name], where) for name in NAMES & set(values) if not _is_unset(values[name])}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Found]:
    return {
        option.name: Found(environ[variable], f"environment variable {variable}")
        for option in OPTIONS
        for variable in reversed(option.variables)  # the last one is kept: the option's own variable precedes its aliases
        if not _is_unset(environ.get(variable))
    }


def _from_command_line(given: Given) -> dict[str, Found]:
    found = {}
    for name in NAMES & set(given.sets):
        option, values = BY_NAME[name], given.sets[name]
        raw: object = list(values)
        if option.type is bool and values in ([], ["toggle"]):
            raw = "true" if not values else str(not option.default)
        elif option.type != Sequence[str]:
            if len(values) != 1:
                raise SettingsError(f"{name} (--set): write it once, with a value: --set {name}=VALUE")
            raw = values[0]
        found[name] = Found(raw, "--set")
    return found


def _read(path: Path, environ: Mapping[str, str]) -> dict[str, object]:
    """Read a YAML mapping. Errors name the line but do not quote it, because it may contain a key."""
    try:
        values = YAML(typ="safe", pure=True).load(file_trust.read(path, environ).decode())
    except file_trust.Untrusted as error:
        raise SettingsError(f"{path} is not used: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    except (YAMLError, ValueError) as error:  # ValueError: an invalid date
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        right = "write `name: value` lines, each name once, and values with : # [ { * & in quotes"
        raise SettingsError(f"{place}: not YAML: {right}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{path} is not a mapping: write `name: value` lines")
    return values


TOOLS = frozenset(
    """
    console_default_contentview console_eventlog_verbosity console_flowlist_layout console_focus_follow console_layout
    console_layout_headers console_mouse console_palette console_palette_transparent console_quickhelp_visible
    console_strip_trailing_newlines dumper_default_contentview dumper_filter flow_detail intercept intercept_active keepserving
    termlog_verbosity view_filter view_order view_order_reversed web_columns web_debug web_host web_open_browser web_password
    web_port web_static_viewer web_theme
    """.split()  # noqa: SIM905 - more readable than a list
)
"""Options that not all of mitmdump, mitmweb and mitmproxy have. The same file is valid for all three."""


def _check_set(names: Iterable[str], where: str, known: AbstractSet[str] = NAMES) -> None:
    """Reject a name that is probably a misspelled option of the addon, since mitmproxy ignores unknown names.

    Raises:
        SettingsError: the name is misspelled, or can be set in the file only.
    """
    for name in names:
        plain = name.lower().replace("-", "_")
        if name in known or not (plain.startswith("azure_openai") or difflib.get_close_matches(plain, NAMES, 1, MIN_SIMILARITY)):
            continue
        if name in LISTS:
            raise SettingsError(f"{name} ({where}): a list of {LISTS[name]} can be set in {FILE} only")
        near = difflib.get_close_matches(plain, sorted(known), 1, 0.5)
        what = f"{name} is" if re.fullmatch("[A-Za-z_-]{1,40}", name) else "one of its names is"
        raise SettingsError(f"{where}: {what} not an option" + (f": did you mean {near[0]}?" if near else ""))


def check_names(file: ConfigFile, known: Iterable[str]) -> None:
    """Reject unknown names in the configuration file.

    Raises:
        SettingsError: no option has this name; the message suggests the most similar one.
    """
    known = {*known, *NAMES, *TOOLS, *LISTS}
    for name in file.values:
        if name not in known:
            near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(known), 1, 0.5)
            # do not quote an unusual name: it may be a misplaced value, such as a key
            what = f"{name} is" if re.fullmatch("[A-Za-z_-]{1,40}", name) else "one of its names is"
            raise SettingsError(f"{file.path}: {what} not an option" + (f": did you mean {near[0]}?" if near else ""))
