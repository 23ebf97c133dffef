"""mitmproxy's options for the layers of a connection, read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mitmproxy.options import Options

__all__ = ["OptionValues", "values_of"]


class OptionValues:
    """The values of the options as attributes.

    mitmproxy copies the default and the value whenever an option is read, which takes 1.5 µs, and reads ten of them for a request. Here a
    value is read once, and forgotten when any option changes. Its users must not change it.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        options.changed.connect(self._forget)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._options, name)
        vars(self)[name] = value
        return value

    def _forget(self, *_: object, **__: object) -> None:
        options = self._options
        vars(self).clear()
        self._options = options


_last: OptionValues | None = None


def values_of(options: Options) -> OptionValues:
    """Return the values of these options; the same object for the same options, of which a process has one set."""
    global _last  # noqa: PLW0603 - a cache of one entry
    if _last is None or _last._options is not options:  # noqa: SLF001 - of this module
        _last = OptionValues(options)
    return _last
