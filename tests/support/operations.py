"""OpenAI's operations, each with its place at Azure, as the tests know them: `operations.txt`, one line each.

It was condensed from a larger map, which gives its sources. Where that lies beside the repository (or where OPERATIONS_MAP says),
with the OpenAPI documents it was made of, a test keeps the two equal, and the conformance test holds what it sees against both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

__all__ = ["FOLDER", "NEWEST_GA", "NEWEST_PREVIEW", "Row", "condensed", "load", "rows"]

_FILE = Path(__file__).with_suffix(".txt")
FOLDER = Path(os.environ.get("OPERATIONS_MAP") or _FILE.parents[3] / "shared" / "azure")
NEWEST_GA, NEWEST_PREVIEW = "2024-10-21", "2025-04-01-preview"


class Row(NamedTuple):
    """One operation. `-` stands for nothing, `=` for OpenAI's own path below Azure's."""

    method: str  # WS for a WebSocket
    path: str  # OpenAI's, query included
    body: Literal["-", "json", "multipart"]
    model: Literal["-", "json", "multipart", "path", "query"]
    handled_by: Literal["azure", "proxy", "unsupported"]  # unsupported: the proxy responds that Azure does not have the operation
    v1: str = "-"  # below /openai/v1
    dated: str = "-"  # below /openai; `=` with a deployment: `deployment`
    ga: str = "-"
    preview: str = "-"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def at_azure(self, version: str) -> tuple[str, str]:
        """Path and api-version ("" for none) with `version` configured."""
        bare = self.path.partition("?")[0].removeprefix("/v1")
        v1 = "" if self.v1 == "-" else "/openai/v1" + (bare if self.v1 == "=" else self.v1)
        dated = "/openai" + {"=": bare, "deployment": "/deployments/{deployment}" + bare}.get(self.dated, self.dated)
        has = version != "v1" and self._since(version)
        if self.dated == "-" or (v1 and not has):
            return v1, ""
        return dated, version if has else NEWEST_GA if self._since(NEWEST_GA) else NEWEST_PREVIEW

    def _since(self, version: str) -> bool:
        first = self.preview if version.endswith("-preview") else self.ga
        return self.dated != "-" and first != "-" and first <= version


def rows() -> list[Row]:
    lines = (line.split() for line in _FILE.read_text().splitlines() if line and line[0] != "#")
    return [Row(*line) for line in lines]  # type: ignore[arg-type]  # a test compares them with the map


_HANDLED_BY = {"refuse": "unsupported", "synthesize": "proxy"}


def condensed(entry: dict[str, Any]) -> Row:
    """An entry of the map as a row."""
    path = entry["openai_path"]
    same = path.partition("?")[0].removeprefix("/v1")
    v1 = (entry["azure_v1_path"] or "-").removeprefix("/openai/v1")
    dated = (entry["azure_dated_path"] or "-").removeprefix("/openai")
    versions = entry["azure_dated_versions"] or {}
    row = Row(
        "WS" if entry["method"] == "GET (WebSocket)" else entry["method"],
        path,
        "-" if entry["body_kind"] == "none" else entry["body_kind"],
        "-" if entry["model_in"] == "none" else entry["model_in"],
        _HANDLED_BY.get(entry["disposition"], "azure"),  # type: ignore[arg-type]
    )
    if row.handled_by != "azure":
        return row
    return row._replace(
        v1="=" if v1 == same else v1,
        dated={same: "=", f"/deployments/{{deployment}}{same}": "deployment"}.get(dated, dated),
        ga=versions.get("first_ga") or "-",
        preview=versions.get("first_preview") or "-",
    )


def load(name: str) -> Any:
    """A JSON document of the map's folder."""
    return json.loads((FOLDER / name).read_text())
