"""Count phrases that make comments, docstrings and documents hard to read; fail above a limit per tree.

python tools/check_prose.py            check the trees of LIMITS (part of `make lint`)
python tools/check_prose.py PATH...    print the rates of files or directories, and every line that has a counted phrase

Three kinds of phrases are counted, in occurrences per 1,000 words: noun clauses (`what is left`), pronouns (`nobody`) and
metaphors (`a room`). Comments are read with `tokenize`, docstrings (those of attributes too) with `ast`, documents as Markdown.
Code blocks, code spans, link targets, HTML tags and markers for other tools (`noqa`) are skipped.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["LIMITS", "PHRASES", "Block", "Found", "Limit", "Measured", "blocks", "main", "measure"]

ROOT = Path(__file__).parent.parent


class Limit(NamedTuple):
    """The highest rates allowed."""

    clauses: float = 1
    pronouns: float = 0.3
    metaphors: float = 0


# A file counts in the most specific tree only.
LIMITS = {
    "addon": Limit(),
    "addon/azure_openai_proxy/accounting": Limit(),
    "addon/azure_openai_proxy/api": Limit(),
    "addon/azure_openai_proxy/cli": Limit(),
    "addon/azure_openai_proxy/client_leg": Limit(),
    "addon/azure_openai_proxy/compatibility.py": Limit(),
    "addon/azure_openai_proxy/config": Limit(),
    "addon/azure_openai_proxy/egress": Limit(),
    "addon/azure_openai_proxy/errors.py": Limit(),
    "addon/azure_openai_proxy/formats": Limit(),
    "addon/azure_openai_proxy/gateway": Limit(),
    "addon/azure_openai_proxy/inspection": Limit(),
    "addon/azure_openai_proxy/mitmproxy_patches": Limit(),
    "addon/azure_openai_proxy/routing": Limit(),
    "CHANGELOG.md": Limit(),
    "docs": Limit(),
    "CONTRIBUTING.md": Limit(),
    "README.md": Limit(),
    "SECURITY.md": Limit(),
    "tools": Limit(),
    "tests": Limit(),
    "tests/azure_simulator": Limit(),
    "tests/clients": Limit(),
    "tests/e2e": Limit(),
    "tests/support": Limit(),
    "tests/unit": Limit(),
    "tests/unit/accounting": Limit(),
    "tests/unit/api": Limit(),
    "tests/unit/cli": Limit(),
    "tests/unit/client_leg": Limit(),
    "tests/unit/config": Limit(),
    "tests/unit/documents": Limit(),
    "tests/unit/egress": Limit(),
    "tests/unit/formats": Limit(),
    "tests/unit/gateway": Limit(),
    "tests/unit/inspection": Limit(),
    "tests/unit/mitmproxy_patches": Limit(),
    "tests/unit/routing": Limit(),
}

_VERBS = (
    "is are was were has have had can cannot may must should would will does did comes? came goes went stands? stood belongs? becomes?"
    " became follows? followed lies makes? made needs? takes? took gives? gave holds? held keeps? kept says? said knows? knew begins?"
    " began ends? ended arrives? arrived remains? leaves? left reads? sends? sent runs? ran happens? happened waits? asks? asked counts?"
)
_METAPHORS = (
    "rooms?|houses?|mend(?:s|ed|ing)?|ways? in(?! which)|hasten(?:s|ed|ing)?|told|hears?|heard|leads? nowhere|becomes? of|comes? of|goes by"
    "|lives|dies|wakes?|woken|sleeps?|asleep"
)
PHRASES = {
    "clauses": rf"\bwhat(?:ever)? (?:(?:it|they|there|one|nobody|nothing) )?(?:{_VERBS.replace(' ', '|')})\b",
    "pronouns": r"\b(?:(?:no|some|any|every)body|(?:no |some|any|every)one(?! of)|who(?:m|so)?ever)\b",
    "metaphors": rf"\b(?:{_METAPHORS})\b",
}
_PATTERNS = {kind: re.compile(phrase.replace(" ", r"\s+"), re.IGNORECASE) for kind, phrase in PHRASES.items()}

_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_MARKERS = re.compile(r"\b(?:noqa: [A-Z0-9, ]+|type: ignore\[[^\]]*\]|pragma: no (?:cover|branch))")
_CODE = re.compile(r"^ *```.*?^ *```|<!--.*?-->|</?\w[^>\n]*>|`[^`\n]*`|(?<=\])\([^)\s]*\)|https?://\S+", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A comment over one or more lines, a docstring or a document; `line` is the number of its first line."""

    line: int
    text: str


class Found(NamedTuple):
    """One counted phrase: its line number in the file, the kind of phrase and the whole line."""

    path: Path
    line: int
    kind: str
    text: str


class Measured(NamedTuple):
    words: int
    found: list[Found]

    def rate(self, kind: str) -> float:
        """Occurrences per 1,000 words."""
        return 1000 * sum(each.kind == kind for each in self.found) / max(self.words, 1)

    def __str__(self) -> str:
        return f"{self.words} words; per 1,000: {', '.join(f'{kind} {self.rate(kind):.1f}' for kind in PHRASES)}"


def blocks(path: Path) -> Iterator[Block]:
    """The prose of a Python file or a document."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _comments(source)
        yield from _docstrings(source)
    else:
        yield Block(1, source)


def _comments(source: str) -> Iterator[Block]:
    """Comments; those on adjacent lines are one block, since a phrase may continue on the next line."""
    start, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if lines and token.start[0] != start + len(lines):
                yield Block(start, "\n".join(lines))
                lines = []
            if not lines:
                start = token.start[0]
            lines.append(_MARKERS.sub("", token.string.lstrip("#")))
    if lines:
        yield Block(start, "\n".join(lines))


def _docstrings(source: str) -> Iterator[Block]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Block(node.lineno, node.value.value)


def measure(paths: Iterable[Path]) -> Measured:
    """Count the phrases and the words of files."""
    words = 0
    found = []
    for path in paths:
        for block in blocks(path):
            text = _CODE.sub(lambda code: "\n" * code[0].count("\n") or " ", block.text)
            words += len(_WORD.findall(text))
            lines = block.text.split("\n")
            for kind, pattern in _PATTERNS.items():
                for match in pattern.finditer(text):
                    offset = text.count("\n", 0, match.start())
                    found.append(Found(path, block.line + offset, kind, lines[offset].strip()))
    return Measured(words, sorted(found))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from sorted(each for each in path.rglob("*") if each.suffix in (".py", ".md"))


def _print(found: Iterable[Found]) -> None:
    for path, line, kind, text in found:
        print(f"  {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {kind}: {text}")


def _check() -> int:
    """Compare each tree with its limits. Print the trees that exceed them, with the lines, and return the exit status."""
    files: dict[str, list[Path]] = {}
    for tree in sorted(LIMITS, key=len, reverse=True):
        taken = {path for paths in files.values() for path in paths}
        files[tree] = [path for path in _files(ROOT / tree) if path not in taken]
    status = 0
    for tree, limit in LIMITS.items():
        measured = measure(files[tree])
        allowed = limit._asdict()
        over = [kind for kind in PHRASES if measured.rate(kind) > allowed[kind]]
        if over:
            status = 1
            print(f"{tree}: {measured}; allowed: {', '.join(f'{kind} {allowed[kind]}' for kind in over)}")
            _print(each for each in measured.found if each.kind in over)
    return status


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 1 if a tree of LIMITS exceeds a limit; 0 if paths are given."""
    for argument in arguments:
        measured = measure(_files(Path(argument).resolve()))
        print(f"{argument}: {measured}")
        _print(measured.found)
    return 0 if arguments else _check()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
