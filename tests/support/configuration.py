"""Settings for tests: gathered from given sources, and applied to a mitmproxy without servers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mitmproxy.options import Options

from azure_openai_proxy.config import settings as values
from azure_openai_proxy.config import sources
from azure_openai_proxy.config.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mitmproxy.test import taddons

    from azure_openai_proxy.config.settings import Found, Settings
    from azure_openai_proxy.config.sources import ConfigFile

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from mitmproxy.addons.proxyauth import ProxyAuth
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.addons.script import ScriptLoader

__all__ = ["ENDPOINT", "KEY", "Mitmproxy", "gather", "settings"]

ENDPOINT = "https://r.openai.azure.com"
KEY = "sesame-0123456789"


def gather(
    *arguments: str, environ: Mapping[str, str] | None = None, changed: Mapping[str, Found] | None = None
) -> tuple[dict[str, Found], ConfigFile]:
    return sources.gather(sources.command_line(arguments, Options()), environ or {}, "conf", changed=changed)


def settings(*arguments: str, **environ: str) -> Settings:
    return values.resolve(gather(*arguments, environ={"AZURE_OPENAI_ENDPOINT": ENDPOINT, **environ})[0])


class Addon:
    """An addon that calls `Runtime` as the real one does."""

    def __init__(self, environ: Mapping[str, str], arguments: Sequence[str]) -> None:
        self.live = Runtime(environ, arguments)

    def load(self, loader: Any) -> None:
        self.live.load(loader)


class Mitmproxy:
    """mitmproxy's options and addons without its servers, with the addon loaded like a script."""

    def __init__(self, context: taddons.context) -> None:
        self.options = context.options
        self.master = context.master
        self.options.update(confdir="conf")
        self.master.addons.add(Proxyserver(), ProxyAuth(), ScriptLoader())

    def start(self, *arguments: str, **environ: str) -> Runtime:
        given = sources.command_line(arguments, self.options)
        self.options.set(*(f"{name}={value}" for name, values in given.sets.items() for value in values), defer=True)
        addon = Addon({"AZURE_OPENAI_ENDPOINT": ENDPOINT, **environ}, arguments)
        addon.configure = lambda updated: addon.live.configure(self.options, updated)  # type: ignore[attr-defined]
        self.master.addons.add(addon)
        addon.configure(self.options.keys())  # type: ignore[attr-defined]
        return addon.live
