"""THE table: every OpenAI operation and its Azure form. The only place that knows paths.

A path is written without `/v1`; `{...}` stands for one segment. An operation that the dated API has says where
(`{deployment}` is filled in by routing); every one has the v1 form `/openai/v1` + the same path.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["ENDPOINTS", "Endpoint", "find", "segments"]


class Endpoint(NamedTuple):
    """One row of the OpenAI to Azure map."""

    method: str
    path: str  # as the client asks, without /v1
    dated: str | None = None  # below /openai of the dated API; None: v1 only
    model_in: Literal["body", "path", "none"] = "none"
    by: Literal["azure", "proxy"] = "azure"  # who answers

    @property
    def operation(self) -> str:
        """How a message names it: `POST /v1/chat/completions`."""
        return f"{self.method} /v1{self.path}"

    @property
    def v1(self) -> str:
        return f"/openai/v1{self.path}"


ENDPOINTS = (
    Endpoint("POST", "/chat/completions", "/openai/deployments/{deployment}/chat/completions", "body"),
    Endpoint("POST", "/completions", "/openai/deployments/{deployment}/completions", "body"),
    Endpoint("POST", "/embeddings", "/openai/deployments/{deployment}/embeddings", "body"),
    Endpoint("GET", "/models", by="proxy"),
    Endpoint("GET", "/models/{model}", model_in="path", by="proxy"),
)


def segments(path: str) -> tuple[str, ...]:
    """The path's segments below /v1, however a base URL was written: `//v1/chat/`, `/chat` and `/v1/chat` are one."""
    parts = tuple(part for part in path.split("/") if part)
    return parts[1:] if parts[:1] == ("v1",) else parts


def _index() -> dict[tuple[str, int], list[tuple[tuple[str, ...], Endpoint]]]:
    index: dict[tuple[str, int], list[tuple[tuple[str, ...], Endpoint]]] = {}
    for row in ENDPOINTS:
        shape = segments(row.path)
        index.setdefault((row.method, len(shape)), []).append((shape, row))
    return index


_INDEX = _index()


def find(method: str, path: tuple[str, ...]) -> tuple[Endpoint, dict[str, str]] | None:
    """The row for an operation, with the values of its path's `{...}`; None: no row names it."""
    for shape, row in _INDEX.get((method, len(path)), ()):
        if all(part == asked or part[0] == "{" for part, asked in zip(shape, path, strict=True)):
            return row, {part[1:-1]: asked for part, asked in zip(shape, path, strict=True) if part[0] == "{"}
    return None
