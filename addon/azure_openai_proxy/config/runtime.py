"""The settings of a running mitmproxy: read at startup, reread when options or files change, and shown as option values."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import exceptions
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.utils import typecheck

from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

from . import backends as backends_config
from . import client_list, startup_warnings
from . import prices as prices_config
from .options import FILE, NAMES, declare
from .settings import Found, Settings, as_option_values, resolve, summary
from .sources import ConfigFile, Given, check_names, command_line, gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mitmproxy.addonmanager import Loader
    from mitmproxy.optmanager import OptManager

    from .parsers import Address


__all__ = ["Runtime", "listen_modes", "movable"]

logger = logging.getLogger(__name__)


def listen_modes(modes: Sequence[str], address: Address) -> list[str]:
    """mitmproxy's modes with `address` added to the first mode that can have an address and has none."""
    listening = list(modes)
    for index, mode in enumerate(modes):
        if _port(mode) is not None:
            listening[index] = _at(mode, address.host, address.port)
            break
    return listening


def movable(modes: Sequence[str]) -> bool:
    """Whether --listen-host and --listen-port, which apply to all modes, have the same effect as `listen_modes`."""
    return len(modes) == 1 and _port(modes[0]) is not None


def _at(mode: str, host: str, port: int) -> str:
    return f"{mode}@{host}:{port}" if host else f"{mode}@{port}"


def _port(mode: str) -> int | None:
    """The default port of a mode; None if the mode has an address or is not used by OpenAI clients (dns, wireguard)."""
    try:
        parsed = ProxyMode.parse(mode)
    except ValueError:
        return None  # mitmproxy reports it
    return None if "@" in mode or parsed.type_name in ("dns", "wireguard") else parsed.default_port


def _explicit(mode: str, options: OptManager) -> str:
    """The mode with an explicit address, because mitmproxy restarts a server only if the text of its mode changes."""
    port = _port(mode)
    if port is None:
        return mode
    return _at(mode, options.listen_host, options.listen_port if options.listen_port is not None else port)


class Runtime:
    """The current settings. The addon's hooks of the same names call these methods."""

    def __init__(self, environ: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None) -> None:
        self.settings = Settings()
        self._environ = os.environ if environ is None else environ
        self._arguments = sys.argv[1:] if arguments is None else arguments
        self._given = Given()
        self._deferred: dict[str, object] = {}
        self._changed: dict[str, Found] = {}  # set while running
        self._shown: dict[str, Any] = {}  # the option values that this class has set: another value is a user's change
        self._file = ConfigFile()
        self._watched: tuple[ConfigFile | None, tuple[Path, ...]] = (None, ())  # and the files that it names
        self._found: Mapping[str, Found] = {}
        self._running = False
        self._busy = False
        self._modes: tuple[list[str], list[str]] | None = None  # mitmproxy's modes before and after this class changed them
        self._listening: list[object] = []  # mitmproxy's options of listening, with which it starts

    def load(self, loader: Loader) -> None:
        declare(loader)
        options = loader.master.options
        self._listening = _listening(options)
        given = command_line(self._arguments, options)
        # mitmproxy defers values of unknown options, those of config.yaml over those of --set, and would assign them now. Then a file
        # would override --set, the key would be visible in the options, and a value of the wrong type would end in a traceback.
        # Therefore they are removed here; `gather` reads both sources itself.
        sets = dict(given.sets)
        for name in {name for name in options.deferred if name in NAMES or name.lower().startswith("azure_openai")}:
            value = options.deferred.pop(name)
            if (texts := getattr(value, "val", None)) is not None:  # from --set, not parsed yet
                sets.setdefault(name, texts)
            else:
                self._deferred[name] = value
        self._given = given._replace(sets=sets)
        self._shown = _current(options)

    def configure(self, options: OptManager, updated: Iterable[str]) -> None:
        """Read changed options. At startup an invalid value is logged as an ERROR, which ends mitmproxy; later the change is rejected.

        Raises:
            OptionsError: a changed value is invalid; mitmproxy then restores the previous values.
        """
        ours = NAMES & set(updated)
        start = ours == NAMES  # mitmproxy passes all options to an addon that was just loaded
        changed = {name: Found(value, "set while running") for name, value in _current(options).items() if value != self._shown.get(name)}
        if self._busy or not ours or not (start or changed):
            return  # a change by this class, or of other options
        self._busy = True
        try:
            self._read(options, changed)
        except SettingsError as error:
            if not start:
                raise exceptions.OptionsError(str(error)) from error
            logger.error("%s", error)  # noqa: TRY400 - no traceback for a user's error
            return
        finally:
            self._busy = False
        if self._running:
            logger.info(summary(self.settings))

    async def watch(self, options: OptManager, every: float = 1.0) -> None:
        """Poll the configuration file and those it names, and apply changes. `every` is in seconds. An invalid change is logged once."""
        seen = self._stamps()
        while True:
            await asyncio.sleep(every)
            if seen != (seen := self._stamps()):
                if self.settings.prices:
                    await asyncio.to_thread(prices_config.preload, self.settings.prices.path)
                self.reread(options)
                # A file that has changed since keeps its stamp from before the reading. Others may be watched from now on.
                seen = {path: seen.get(path, stamp) for path, stamp in self._stamps().items()}

    def _stamps(self) -> dict[Path, tuple[int, int] | None]:
        if self._watched[0] is not self._file:
            named = backends_config.files(self._file.values.get(backends_config.NAME))
            named_by_clients = client_list.files(self._file.values.get(client_list.NAME))
            self._watched = self._file, (self._file.path or Path(FILE), *named, *named_by_clients)
        files = set(self._watched[1])
        if self.settings.prices:
            files.add(self.settings.prices.path)
        return {path: _modified(path) for path in files}

    def reread(self, options: OptManager) -> None:
        """Read all settings again. If a file is invalid, log the error and keep the previous settings."""
        self._busy = True
        before, file = self.settings, self._file
        try:
            self._read(options, {})
        except SettingsError as error:
            logger.error("%s: the previous settings stay in force", error)  # noqa: TRY400 - no traceback for a user's error
            return
        finally:
            self._busy = False
        if self._file != file and self._file.path:
            logger.info("Configuration file: %s", self._file.path.absolute())
        if self.settings != before:
            logger.info(summary(self.settings))

    def located(self, error: SettingsError) -> str:
        """The text of an error that begins with the name of a setting, with the source of its value as in errors of `configure`."""
        name, _, text = str(error).partition(": ")
        return f"{name} ({found.where}): {text}" if (found := self._found.get(name)) else str(error)

    def running(self, options: OptManager) -> None:
        """Listen on the configured address, which mitmproxy could not read before it started, and log the effective configuration."""
        self._running = True
        if self.settings.mode == "azure" and self.settings.backend is None and not _offline(options):
            return  # `configure` has logged the error
        modes = list(options.mode)
        if self.settings.address == (options.listen_host, options.listen_port):
            pass  # mitmproxy already listens there: the launcher passed the address as an argument
        elif self.settings.address:
            self._listen(options, listen_modes(modes, self.settings.address))
        elif not self._given.listens and _listening(options) != self._listening:
            if {"listen_host", "listen_port"} & set(self._file.values):
                self._listen(options, [_explicit(mode, options) for mode in modes])
            options.update(server=options.server)
        logger.info(summary(self.settings))
        if self._file.path:
            logger.info("Configuration file: %s", self._file.path.absolute())
        for line in (
            *startup_warnings.careless(self.settings, self._found, self._file.path, ssl_insecure=options.ssl_insecure),
            *startup_warnings.ignored_proxy(self._environ, options.mode, options.listen_port),
            *startup_warnings.unread(self._environ),
            *startup_warnings.forgetful(self.settings),
            *startup_warnings.keyless(self.settings),
        ):
            logger.warning(line)

    def _read(self, options: OptManager, changed: Mapping[str, Found]) -> None:
        changed = {**self._changed, **changed}
        found, file = gather(self._given, self._environ, options.confdir, deferred=self._deferred, changed=changed)
        check_names(file, options.keys())
        settings = resolve(found, offline=_offline(options))
        if settings.client_auth == "required" and not (settings.clients or settings.ledger or self._running):
            raise SettingsError(
                "azure_openai_client_auth: it is required, but there is no client: "
                "add azure_openai_clients, or azure_openai_ledger for managed keys"
            )
        runtime = "azure_openai_proxy_address" in changed
        if self._given.listens and not runtime and settings.address != (options.listen_host, options.listen_port):
            settings = dataclasses.replace(settings, address=None)  # the command line overrides the address
        launched = not self._given.listens and self.settings.address == (options.listen_host, options.listen_port)
        self._apply(options, file)
        before, self.settings, self._changed, self._file, self._found = self.settings, settings, changed, file, found
        self._shown = as_option_values(found, settings, file.path)
        options.update(**self._shown)
        if settings.prices and settings.prices != before.prices:
            for line in startup_warnings.unknown_tiers(settings.prices):
                logger.warning(line)
        if self._running and settings.address != before.address:
            modes = list(options.mode)
            if self._modes and self._modes[1] == modes:
                modes = self._modes[0]
            moved = listen_modes(modes, settings.address) if settings.address else modes
            if launched:
                # These were the launcher's arguments. mitmproxy would use the host in modes with a port only, too.
                options.update(listen_host=file.values.get("listen_host", ""), listen_port=file.values.get("listen_port"))
                if moved == options.mode:
                    moved = [_explicit(mode, options) for mode in modes]
            self._listen(options, moved)

    def _apply(self, options: OptManager, file: ConfigFile) -> None:
        """Set mitmproxy's own options from the file, except those that the command line sets or that have not changed in the file."""
        specs = dict(options.items())
        for name, value in file.values.items():
            if name in NAMES or name in self._given.names or name not in specs or self._file.values.get(name, ...) == value:
                continue
            where = f"{name} ({file.path})"
            spec = specs[name]
            try:
                typecheck.check_option_type(name, value, spec.typespec)
            except TypeError:
                raise SettingsError(f"{where}: write {_typename(spec.typespec)}, not {type(value).__name__}") from None
            if spec.choices and value not in spec.choices:
                raise SettingsError(f"{where}: write one of {', '.join(spec.choices)}")
            if name == "confdir":
                logger.warning(
                    "%s: the config.yaml in this folder is not read, because mitmproxy reads it before this file: use --set confdir=FOLDER",
                    where,
                )
            if name == "scripts":  # scripts that run, such as this addon, stay loaded
                folder = (file.path or Path()).absolute().parent
                named = [str(folder / expanded(script)) for script in _strings(value)]
                value = [*options.scripts, *(script for script in named if script not in options.scripts)]  # noqa: PLW2901
            try:
                options.update(**{name: value})
            except exceptions.OptionsError as error:
                # options such as proxyauth and upstream_auth contain passwords
                raise SettingsError(f"{where}: " + str(error).replace(str(value), "...").replace("\n", " ")) from None

    def _listen(self, options: OptManager, modes: list[str]) -> None:
        before = list(options.mode)
        if modes == before:
            return
        original = self._modes[0] if self._modes and self._modes[1] == before else before
        self._modes = (original, modes)
        options.update(mode=modes)


def _modified(path: Path) -> tuple[int, int] | None:
    """The times of the last change of the content and, on POSIX, of the permissions, in ns; None without the file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns


def _offline(options: OptManager) -> bool:
    return any(name in options and bool(getattr(options, name)) for name in ("server_replay", "rfile"))


def _listening(options: OptManager) -> list[object]:
    return [options.mode, options.listen_host, options.listen_port, options.server]


def _current(options: OptManager) -> dict[str, Any]:
    return {name: getattr(options, name) for name in NAMES}


def _strings(value: Any) -> list[str]:
    return list(value)


def _typename(typespec: Any) -> str:
    return {"str": "text", "bool": "true or false", "int": "a number"}.get(name := typecheck.typespec_to_str(typespec), name)
