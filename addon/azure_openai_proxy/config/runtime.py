"""The settings while mitmproxy runs: read at its start, changed with its options and with the file, shown in its options."""

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

from . import backends as backends_config
from . import startup_warnings
from .options import FILE, NAMES, declare
from .settings import Found, Settings, resolve, shown, summary
from .sources import ConfigFile, Given, check_names, command_line, gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mitmproxy.addonmanager import Loader
    from mitmproxy.optmanager import OptManager

    from .parsers import Address


__all__ = ["Live", "listen_modes", "movable"]

logger = logging.getLogger(__name__)


def listen_modes(modes: Sequence[str], address: Address) -> list[str]:
    """The modes of mitmproxy's, the first that has no address of its own (and can have one) at `address`."""
    listening = list(modes)
    for index, mode in enumerate(modes):
        if _port(mode) is not None:
            listening[index] = _at(mode, address.host, address.port)
            break
    return listening


def movable(modes: Sequence[str]) -> bool:
    """Whether --listen-host and --listen-port, which are for all modes at once, do the same as `listen_modes`."""
    return len(modes) == 1 and _port(modes[0]) is not None


def _at(mode: str, host: str, port: int) -> str:
    return f"{mode}@{host}:{port}" if host else f"{mode}@{port}"


def _port(mode: str) -> int | None:
    """The default port of a mode; None for one that has an address, or takes its traffic in other ways than OpenAI clients come."""
    try:
        parsed = ProxyMode.parse(mode)
    except ValueError:
        return None  # mitmproxy has a better message for it
    return None if "@" in mode or parsed.type_name in ("dns", "wireguard") else parsed.default_port


class Live:
    """The settings in force while mitmproxy runs. The addon's hooks of the same names call these."""

    def __init__(self, environ: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None) -> None:
        self.settings = Settings()
        self._environ = os.environ if environ is None else environ
        self._arguments = sys.argv[1:] if arguments is None else arguments
        self._given = Given()
        self._deferred: dict[str, object] = {}
        self._changed: dict[str, Found] = {}  # while running
        self._shown: dict[str, Any] = {}  # what our options hold by our own hand: anything else is somebody's change
        self._file = ConfigFile()
        self._found: Mapping[str, Found] = {}
        self._running = False
        self._busy = False
        self._modes: tuple[list[str], list[str]] | None = None  # mitmproxy's before we changed them, and as we left them

    def load(self, loader: Loader) -> None:
        declare(loader)
        options = loader.master.options
        given = command_line(self._arguments, options)
        # mitmproxy keeps what it cannot place yet, the values of config.yaml over those of --set, and would now put them into our
        # options: with --set beaten by a file, the key for all to see, and a traceback for a value of the wrong type. They are
        # ours to read, so take them away; `gather` finds both again, each in its place.
        sets = dict(given.sets)
        for name in {name for name in options.deferred if name in NAMES or name.lower().startswith("azure_openai")}:
            value = options.deferred.pop(name)
            if (texts := getattr(value, "val", None)) is not None:  # from --set, as yet unread
                sets.setdefault(name, texts)
            else:
                self._deferred[name] = value
        self._given = given._replace(sets=sets)
        self._shown = _current(options)

    def configure(self, options: OptManager, updated: Iterable[str]) -> None:
        """Read what changed. At the start a bad value is one ERROR in the log, which ends mitmproxy; later the change is refused.

        Raises:
            OptionsError: mitmproxy then puts the former values back.
        """
        ours = NAMES & set(updated)
        start = ours == NAMES  # mitmproxy names every option to an addon that was just loaded
        changed = {name: Found(value, "set while running") for name, value in _current(options).items() if value != self._shown.get(name)}
        if self._busy or not ours or not (start or changed):
            return  # our own hand, or none of ours
        self._busy = True
        try:
            self._read(options, changed)
        except SettingsError as error:
            if not start:
                raise exceptions.OptionsError(str(error)) from error
            logger.error("%s", error)  # noqa: TRY400 - a line for a person, no traceback
            return
        finally:
            self._busy = False
        if self._running:
            logger.info(summary(self.settings))

    async def watch(self, options: OptManager, every: float = 1.0) -> None:
        """Take up what changes in the file, and in the files with keys that it names. What cannot be used is told once and left alone."""
        seen = self._stamps()
        while True:
            await asyncio.sleep(every)
            if seen != (seen := self._stamps()):
                self.reread(options)
                seen = self._stamps()

    def _stamps(self) -> dict[Path, tuple[int, int] | None]:
        files = {self._file.path or Path(FILE), *backends_config.files(self._file.values.get(backends_config.NAME))}
        return {path: _modified(path) for path in files}

    def reread(self, options: OptManager) -> None:
        """Read everything again; a file that cannot be used changes nothing."""
        self._busy = True
        before, file = self.settings, self._file
        try:
            self._read(options, {})
        except SettingsError as error:
            logger.error("%s: the settings stay as they were", error)  # noqa: TRY400 - a line for a person, no traceback
            return
        finally:
            self._busy = False
        if self._file != file and self._file.path:
            logger.info("Configuration file: %s", self._file.path.absolute())
        if self.settings != before:
            logger.info(summary(self.settings))

    def running(self, options: OptManager) -> None:
        """Listen where the settings and the file say (mitmproxy read its own options too early for either) and tell what is in force."""
        self._running = True
        if self.settings.mode == "azure" and self.settings.backend is None and not _offline(options):
            return  # the start has failed, and has said so
        modes = list(options.mode)
        if self.settings.address == (options.listen_host, options.listen_port):
            pass  # mitmproxy is there already: the launcher puts the address into the arguments
        elif self.settings.address:
            self._listen(options, listen_modes(modes, self.settings.address))
        elif not self._given.listens and not {"mode", "listen_host", "listen_port", "server"}.isdisjoint(self._file.values):
            self._listen(options, [self._explicit(mode, options) for mode in modes])
            options.update(server=options.server)
        logger.info(summary(self.settings))
        if self._file.path:
            logger.info("Configuration file: %s", self._file.path.absolute())
        for line in (
            *startup_warnings.careless(self.settings, self._found, self._file.path, ssl_insecure=options.ssl_insecure),
            *startup_warnings.unread(self._environ),
        ):
            logger.warning(line)

    def _read(self, options: OptManager, changed: Mapping[str, Found]) -> None:
        changed = {**self._changed, **changed}
        found, file = gather(self._given, self._environ, options.confdir, deferred=self._deferred, changed=changed)
        check_names(file, options.keys())
        settings = resolve(found, offline=_offline(options))
        runtime = "azure_openai_proxy_address" in changed
        if self._given.listens and not runtime and settings.address != (options.listen_host, options.listen_port):
            settings = dataclasses.replace(settings, address=None)  # the command line has the last word on where to listen
        self._apply(options, file)
        before, self.settings, self._changed, self._file, self._found = self.settings, settings, changed, file, found
        self._shown = shown(found, settings, file.path)
        options.update(**self._shown)
        if self._running and settings.address != before.address:
            modes = list(options.mode)
            if self._modes and self._modes[1] == modes:
                modes = self._modes[0]
            self._listen(options, listen_modes(modes, settings.address) if settings.address else modes)

    def _apply(self, options: OptManager, file: ConfigFile) -> None:
        """Set mitmproxy's own options as the file says, unless the command line does, or the file said so before."""
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
                logger.warning("%s: too late for its config.yaml, which is not read: use --set confdir=...", where)
            if name == "scripts":  # those that run (this one!) go on
                folder = (file.path or Path()).absolute().parent
                named = [str(folder / Path(script).expanduser()) for script in _strings(value)]
                value = [*options.scripts, *(script for script in named if script not in options.scripts)]  # noqa: PLW2901
            try:
                options.update(**{name: value})
            except exceptions.OptionsError as error:
                # proxyauth, upstream_auth and their like hold passwords
                raise SettingsError(f"{where}: " + str(error).replace(str(value), "...").replace("\n", " ")) from None

    def _listen(self, options: OptManager, modes: list[str]) -> None:
        before = list(options.mode)
        if modes == before:
            return
        original = self._modes[0] if self._modes and self._modes[1] == before else before
        self._modes = (original, modes)
        options.update(mode=modes)

    def _explicit(self, mode: str, options: OptManager) -> str:
        """A mode that says itself where it listens: mitmproxy moves a server only when its mode's text changes."""
        port = _port(mode)
        if port is None or not {"listen_host", "listen_port"} & set(self._file.values):
            return mode
        return _at(mode, options.listen_host, options.listen_port if options.listen_port is not None else port)


def _modified(path: Path) -> tuple[int, int] | None:
    """When its content changed, and (on POSIX) its permissions."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns


def _offline(options: OptManager) -> bool:
    return "server_replay" in options and bool(options.server_replay)


def _current(options: OptManager) -> dict[str, Any]:
    return {name: getattr(options, name) for name in NAMES}


def _strings(value: Any) -> list[str]:
    return list(value)


def _typename(typespec: Any) -> str:
    return {"str": "text", "bool": "true or false", "int": "a number"}.get(name := typecheck.typespec_to_str(typespec), name)
