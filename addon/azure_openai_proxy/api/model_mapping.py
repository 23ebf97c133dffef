"""Model mapping: the Azure deployment for the model that a client names.

An entry is `model=deployment`. A `*` matches any text and may be used on both sides: `gpt-3.5-turbo*=gpt-35-turbo*` sends gpt-3.5-turbo-16k
to gpt-35-turbo-16k. The user's entries have precedence over the defaults. Within each, the order is: the exact name, the pattern with the
most literal text, the entry for a dated name without its date (gpt-4o for gpt-4o-2024-08-06). A model without an entry is used as the
deployment's name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from azure_openai_proxy.errors import SettingsError

__all__ = ["Entry", "Mapper", "family"]

_DATED = re.compile(r"(?P<family>.+)-(?:\d{4}-\d{2}-\d{2}|\d{4})")
MOST_KNOWN, LONGEST_KNOWN = 1000, 100
"""Maximum number of cached results, and maximum length of their names in characters. Clients may send any name."""
_PREFIX = "azure/"  # litellm's prefix for Azure's models; clients that were configured for litellm still send it


def family(model: str) -> str | None:
    """Return a dated name without its date: gpt-4o for gpt-4o-2024-08-06. None for any other name."""
    dated = _DATED.fullmatch(model)
    return dated["family"] if dated else None


class Entry(NamedTuple):
    """One `model=deployment` pair; each side may contain one `*`."""

    model: str
    deployment: str

    @classmethod
    def parse(cls, text: str) -> Entry:
        model, equals, deployment = (part.strip() for part in text.partition("="))
        model = model.removeprefix(_PREFIX)
        if not (model and equals and deployment):
            raise SettingsError(f"{text.strip()!r} is not a mapping: write model=deployment, for example gpt-4o=my-gpt-4o")
        if model.count("*") > 1 or deployment.count("*") > model.count("*"):
            raise SettingsError(
                f"{text.strip()!r} is not a valid pattern: write one * on the left, and one on the right only if there is one on the left"
            )
        return cls(model, deployment)

    def match(self, model: str) -> str | None:
        """Return the deployment for `model`, or None if this pattern does not match."""
        before, _, after = self.model.partition("*")
        if len(model) < len(before) + len(after) or not (model.startswith(before) and model.endswith(after)):
            return None
        return self.deployment.replace("*", model[len(before) : len(model) - len(after)])

    @property
    def name(self) -> str:
        """Return a model name that this entry certainly covers; "" if the pattern does not give one."""
        if "*" not in self.deployment:
            return self.deployment if "*" in self.model else self.model
        return self.model[:-1] if self.model.endswith("*") else ""


class _Table:
    """The compiled entries of one origin. A lookup takes two dictionary accesses and one pass over the patterns."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.exact = {entry.model: entry.deployment for entry in entries if "*" not in entry.model}
        self.patterns = sorted((entry for entry in entries if "*" in entry.model), key=lambda entry: -len(entry.model))

    def deployment(self, model: str) -> str | None:
        if (exact := self.exact.get(model)) is not None:
            return exact
        for pattern in self.patterns:
            if (found := pattern.match(model)) is not None:
                return found
        return self.exact.get(base) if (base := family(model)) else None


class Mapper:
    """The complete mapping: the user's entries with precedence over the defaults. Immutable."""

    def __init__(self, entries: tuple[Entry, ...] = (), listed: tuple[Entry, ...] | None = None) -> None:
        self.entries = entries
        self.listed = entries if listed is None else listed  # what `/v1/models` and error messages list, instead of the entries
        self._tables = (_Table(entries), _DEFAULT_TABLE)
        self._deployments = frozenset(entry.deployment for entry in entries)
        self._known: dict[str, str | None] = {}

    @classmethod
    def parse(cls, text: str) -> Mapper:
        """Parse `model=deployment` pairs, separated by commas or line ends.

        Raises:
            SettingsError: a pair is invalid, or a model is mapped to two deployments.
        """
        entries: dict[str, Entry] = {}
        for pair in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
            entry = Entry.parse(pair)
            if entries.setdefault(entry.model, entry) != entry:
                raise SettingsError(f"{entry.model!r} is mapped twice: to {entries[entry.model].deployment!r} and to {entry.deployment!r}")
        return cls(tuple(entries.values()))

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapper) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def deployment(self, model: str) -> str:
        """Return the deployment for `model`."""
        return self.mapped(model) or model.removeprefix(_PREFIX)

    def mapped(self, model: str) -> str | None:
        """Like `deployment`, but None if no entry covers the model."""
        if model in self._known:
            return self._known[model]
        named = model.removeprefix(_PREFIX)
        found = self._tables[0].deployment(named) or self._tables[1].deployment(named) or None
        if len(model) <= LONGEST_KNOWN and len(self._known) < MOST_KNOWN:
            self._known[model] = found
        return found

    def configured(self, model: str) -> str:
        """Like `deployment`, for a client that names deployments: only the user's own entries are used."""
        return self._tables[0].deployment(model) or model

    def own(self, model: str) -> str | None:
        """Return the deployment by the user's own entries; None if they do not cover the model."""
        return self._tables[0].deployment(model.removeprefix(_PREFIX))

    def has(self, model: str) -> bool:
        """Return whether the user's own entries cover `model`, or have a deployment of that name."""
        return self.own(model) is not None or model in self._deployments

    def names(self) -> list[str]:
        """Return the models that `/v1/models` lists: the user's, or the defaults if there are none."""
        return list(dict.fromkeys(filter(None, (entry.name for entry in self.entries or DEFAULTS))))


DEFAULTS = (
    Entry("gpt-3.5-turbo*", "gpt-35-turbo*"),  # Azure once allowed no dots in deployment names, and the naming has stayed
    Entry("whisper-1", "whisper"),
    Entry("tts-1", "tts"),
    Entry("tts-1-hd", "tts-hd"),
)
_DEFAULT_TABLE = _Table(DEFAULTS)
