"""What the lists of backends and of clients have in common: checks of their entries, and keys in files."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.errors import SettingsError
from azure_openai_proxy.formats.paths import expanded

from . import file_trust, regular_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["check_keys", "files", "read_key_file", "without_secret"]

_SECRET = re.compile("[A-Za-z0-9_-]{16,}")
"""A text that may be a key, and is hardly the name of a file."""
LONGEST_KEY = 64 << 10
"""Bytes of a file with a key alone."""


def files(raw: object, name: str) -> Iterator[Path]:
    """The files that the entries of a list have under the key `name`."""
    for entry in raw if isinstance(raw, list) else ():
        if isinstance(entry, dict) and isinstance(path := entry.get(name), str):
            yield expanded(path)


def check_keys(entry: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Check that an entry has no other keys than `keys`.

    Raises:
        SettingsError: the message names the unknown key, unless it may be a secret, and the most similar valid key.
    """
    for key in entry:
        if key not in keys:
            near = difflib.get_close_matches(str(key).lower(), keys, 1, 0.5)
            what = f"{key} is not a key" if re.fullmatch("[A-Za-z_-]{1,40}", str(key)) else "one of its keys is unknown"
            raise SettingsError(f"{what}: did you mean {near[0]}?" if near else f"{what}: write {', '.join(keys)}")


def read_key_file(path: str, name: str) -> str:
    """Read a file that contains a key alone. `name` is the key of the entry that has the path.

    Raises:
        SettingsError: all users may write the file, or it cannot be read.
    """
    try:
        file = expanded(path)
        if file_trust.everybody_writes(file):
            raise SettingsError(f"{name}: {path} is not used: all users may write it (chmod o-w)")
        with regular_file.opened(file) as source:
            content = source.read(LONGEST_KEY + 1)
        if len(content) > LONGEST_KEY:
            raise SettingsError(f"{name}: {path} is too large for a file with a key alone")
        return content.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        shown = "the file" if _SECRET.fullmatch(path) else path  # the key itself was written here
        why = f": {error.strerror}" if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and error.strerror else ""
        raise SettingsError(f"{name}: {shown} cannot be read{why}") from None


def without_secret(text: str, secret: object) -> str:
    """Remove an entry's key for the API from an error message, in case it was pasted into another field."""
    return text.replace(secret, "...") if isinstance(secret, str) and len(secret) > 3 else text
