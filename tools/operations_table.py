"""`docs/operations.md`, made of the table of endpoints: what is translated, what is answered, what is refused.

python tools/operations_table.py            write it
python tools/operations_table.py --check    fail if it is not current
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "addon"))

from azure_openai_proxy.api import endpoints  # noqa: E402 - from this folder, installed or not

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from azure_openai_proxy.api.endpoints import Endpoint

__all__ = ["BEGIN", "END", "document", "main", "summary"]

BEGIN, END = "<!-- operations: made by tools/operations_table.py -->\n", "<!-- operations: end -->\n"

_INTRODUCTION = """\
# What becomes of each operation

Made by `tools/operations_table.py` from `addon/azure_openai_proxy/api/endpoints.py`, the table that the proxy itself goes by.

`*` stands for every method, `/**` for a path and all below it, `{...}` for one segment; an exact segment beats `{...}`, and both
beat `/**`. Each path is taken with and without `/v1`.
"""

_TRANSLATED = """\
## Sent to Azure

The rule: an operation goes to `/openai/v1` and the same path, and the model that its JSON body names becomes the deployment. What
has no row below goes that way too, so what OpenAI adds tomorrow needs no change here; if Azure has it not, its 404 comes back in
OpenAI's shape. These are the exceptions:

* With a dated api-version configured, an operation goes to the dated API if that has it from this version on.
* What v1 has not goes to the dated API in any case, in its newest version that has it.
* `{deployment}` is the model, mapped.
"""

_ANSWERED = """\
## Answered by the proxy
"""

_REFUSED = """\
## Not at Azure

The answer is a 404 in OpenAI's shape: `type: invalid_request_error`, `code: unsupported_by_azure`, and a message that names the
operation and, where there is one, what to use instead.
"""

_BY = {
    "models": "the models that are configured",
    "engines": "the same in the shape of the first API",
    "billing": "the shape that web front ends look for before they take a key: Azure bills elsewhere, so it tells no figure",
}
_MODEL_IN = {"form": "in the form", "path": "in the path", "query": "in the query", "frames": "in the frames"}


def document(rows: Sequence[Endpoint] = endpoints.ENDPOINTS) -> str:
    exceptions = [row for row in rows if row.by == "azure" and row is not endpoints.RULE]
    answered = [row for row in rows if row.by in _BY]
    refused = [row for row in rows if row.by not in ("azure", *_BY)]
    return "\n".join(
        [
            _INTRODUCTION,
            _TRANSLATED,
            *_table("Operation|`/openai/v1`…|dated: `/openai`…|from GA|from preview|model", map(_exception, exceptions)),
            "",
            _ANSWERED,
            *_table("Operation|What it tells", ((_operation(row), _BY[row.by]) for row in answered)),
            "",
            _REFUSED,
            *_table("Operation|Instead", ((_operation(row), row.instead) for row in refused)),
            "",
        ]
    )


def _operation(row: Endpoint) -> str:
    method = "WebSocket" if row.method == "WS" else row.method
    return f"`{method} {row.path}`"


def _exception(row: Endpoint) -> tuple[str, ...]:
    return (
        _operation(row),
        _path(row, row.v1),
        _path(row, row.dated),
        row.ga if row.dated and row.in_dated(endpoints.NEWEST_GA) else "",
        row.preview if row.dated else "",
        _model(row),
    )


def _path(row: Endpoint, form: str) -> str:
    path = row.path.removesuffix("/**")
    return "nowhere" if not form else "the same" if form == "{path}" else f"`{form.replace('{path}', path)}`"


def _model(row: Endpoint) -> str:
    """Where it stands, if that is not in the body's `model`, or nowhere."""
    inside = ", ".join(f"`{place}`" for place in row.models) if row.models != ("model",) else ""
    if row.model_in == "body":
        return inside if row.models else "a base model: not mapped"
    return ", ".join(filter(None, [_MODEL_IN[row.model_in] if row.models else "", inside]))


def summary(rows: Sequence[Endpoint] = endpoints.ENDPOINTS) -> str:
    """A line for each of the three, with the families that it has; one that is in several stands where most of it goes."""
    families: dict[str, list[str]] = {"azure": [], "here": [], "nobody": []}
    for row in rows:
        family = row.path.split("/")[1].removesuffix("**")
        if family and not any(family in found for found in families.values()):
            families["azure" if row.by == "azure" else "here" if row.by in _BY else "nobody"].append(family)
    said = {
        "azure": "Sent to Azure, as is what the table does not know",
        "here": "Answered by the proxy",
        "nobody": "Not at Azure: an answer that says so",
    }
    lines = _table(
        "What becomes of it|Operations", ((said[by], ", ".join(f"`{name}`" for name in found)) for by, found in families.items())
    )
    return "\n".join([*lines, ""])


def _table(head: str, rows: Iterable[Sequence[str]]) -> list[str]:
    columns = head.split("|")
    return ["|".join(["", *columns, ""]), "|".join(["", *("---" for _ in columns), ""]), *("|".join(["", *row, ""]) for row in rows)]


def _current() -> dict[Path, str]:
    """What the files should hold. README.md is left alone while it has no place for the summary."""
    texts = {ROOT / "docs" / "operations.md": document()}
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition(BEGIN) if readme.exists() else ("", "", "")
    if begin:
        texts[readme] = before + begin + summary() + END + rest.partition(END)[2]
    return texts


def main(arguments: Sequence[str]) -> int:
    stale = {path: text for path, text in _current().items() if not path.exists() or path.read_text() != text}
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not current: python tools/operations_table.py")
        return int(bool(stale))
    for path, text in stale.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
