"""Compare README.md's table of options and mitm_config.yaml with the table in `config/options.py`: names and defaults.

An option whose default is empty or a list may be described in words.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "addon"))

from azure_openai_proxy.config.options import OPTIONS, Option  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

FILE_ONLY = {"azure_openai_backends", "azure_openai_clients", "azure_openai_client_groups"}
"""Settings of the file that are not options of mitmproxy."""
_ROW = re.compile(r"^\| `(azure_openai_\w+)` \| (.*?) ?\| ", re.MULTILINE)
_LINE = re.compile(r"^#(azure_openai_\w+): *(.*?)(?: +#.*)?$", re.MULTILINE)


def default(option: Option) -> str | None:
    """The default in the form of the documents; None if it may be described in words."""
    if isinstance(option.default, bool):
        return str(option.default).lower()
    return option.default or None if isinstance(option.default, str) else None


def differences(text: str, pattern: re.Pattern[str], quote: str = "", without: Container[str] = ()) -> list[str]:
    """The differences between a document's options and the table, except for the names in `without`."""
    rows: Sequence[tuple[str, str]] = pattern.findall(text)
    names = [name for name, _ in rows]
    known = {option.name for option in OPTIONS} | FILE_ONLY
    found = [f"{name} is no option" for name in sorted(set(names) - known)]
    found += [f"{name} is there {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1]
    written = dict(rows)
    for option in OPTIONS:
        expected = default(option)
        if option.name in without:
            continue
        if option.name not in written:
            found.append(f"{option.name} is missing")
        elif expected is not None and written[option.name] != f"{quote}{expected}{quote}":
            found.append(f"the default of {option.name} is {expected}, not {written[option.name]}")
    return found


def main() -> int:
    lines = [f"README.md: {line}" for line in differences((ROOT / "README.md").read_text(), _ROW, "`")]
    file = (ROOT / "mitm_config.yaml").read_text()
    lines += [f"mitm_config.yaml: {line}" for line in differences(file, _LINE, without={"azure_openai_config"})]  # it names the file
    for line in lines:
        print(line)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
