"""The version of this package, and whether an installed version of another one has the private attributes that a feature uses.

A feature is on only if sample objects have every attribute and signature that it uses. The samples are instantiated, because most
attributes are set by `__init__`, and driven where attributes are set later. The tables are in `mitmproxy_patches/compat.py`.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mitmproxy import version

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["Feature", "own_version", "untested"]

logger = logging.getLogger(__name__)

_MEMBER = re.compile(r"(\w+)(\(.*?\))?")
_ABSENT = object()


def own_version() -> str:
    """Return the version of this package; "0" if it is not installed, but run from a clone."""
    try:
        return metadata.version("azure-openai-proxy")
    except metadata.PackageNotFoundError:
        return "0"


def untested(tested: Mapping[str, Collection[str]]) -> str | None:
    """The first installed package whose minor version is not in `tested`; None if there is none. "Python" is one too."""
    for name, versions in tested.items():
        if name == "Python":
            installed = "{}.{}".format(*sys.version_info)
        else:
            installed = version.VERSION if name == "mitmproxy" else metadata.version(name)
        if ".".join(installed.split(".")[:2]) not in versions:
            return f"{name} {installed}"
    return None


class Feature:
    """A set of patches that is on or off as a whole. `lost` is the sentence for the warning if it is off.

    `uses` has for each sample its attributes. The parameters of a method follow its name, without `self`. `modules` import private names.
    """

    def __init__(self, lost: str, samples: Callable[[], dict[str, object]], uses: Mapping[str, str], *modules: str) -> None:
        self.lost = lost
        self.samples = samples
        self.uses = uses
        self.modules = modules

    @cached_property
    def usable(self) -> bool:
        """Whether nothing is missing. Otherwise a warning is logged once."""
        if missing := self.missing():
            logger.warning("This mitmproxy (%s) differs from those known: %s. %s", version.VERSION, missing, self.lost)
        return not missing

    def missing(self) -> str | None:
        """The first difference, or None."""
        try:
            samples = self.samples()
            for name in self.modules:
                importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a changed class can raise anything
            return f"{type(error).__name__}: {error}"
        for name, member, parameters in self.members():
            found = inspect.getattr_static(samples[name], member, _ABSENT)
            if found is _ABSENT:
                return f"{name} has no attribute {member}"
            if parameters and parameters != (actual := _parameters(found)):
                return f"{name}.{member} takes {actual} and not {parameters}"
        return None

    def members(self) -> Iterator[tuple[str, str, str]]:
        """Each sample, attribute, and its parameters in brackets, or ""."""
        for name, members in self.uses.items():
            for member, parameters in _MEMBER.findall(members):
                yield name, member, parameters


def _parameters(member: Any) -> str:
    return f"({' '.join(name for name in inspect.signature(member).parameters if name != 'self')})"
