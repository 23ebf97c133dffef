"""The check of the language in comments, docstrings and documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import check_prose
import pytest

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = '''\
"""Plain words here."""

# The first comment says what
# is left.
LIMIT = 1  # noqa: E501
"""An attribute: nobody reads it, `whoever` is code."""

TEXT = "what is not prose is not counted"


def call() -> None:
    """
    Call the rooms.
    """
'''

DOCUMENT = """\
# Somebody

Text, `nobody`, and [a link](https://example.com/what-is).

```
whoever
```

<!-- everybody -->
What comes last.
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one module and one document."""
    monkeypatch.setattr(check_prose, "ROOT", tmp_path)
    (tmp_path / "addon").mkdir()
    (tmp_path / "addon" / "module.py").write_text(SOURCE)
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


def test_phrases_of_a_module_are_found_with_their_lines(root: Path) -> None:
    """Comments, docstrings and attribute docstrings are counted; code, code spans and other strings are not."""
    measured = check_prose.measure([root / "addon" / "module.py"])

    assert [(3, "clauses"), (6, "pronouns"), (13, "metaphors")] == [(each.line, each.kind) for each in measured.found]
    assert 20 == measured.words
    assert pytest.approx(1000 / 20) == measured.rate("clauses")


def test_code_links_and_tags_of_a_document_are_skipped(root: Path) -> None:
    """Of a Markdown document only the text is counted, and line numbers stay right after a code block."""
    measured = check_prose.measure([root / "README.md"])

    assert [(1, "pronouns"), (10, "clauses")] == [(each.line, each.kind) for each in measured.found]
    assert 8 == measured.words


def test_paths_are_measured_without_a_limit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With arguments the tool prints rates and lines, and the exit status is 0."""
    assert 0 == check_prose.main([str(root / "addon")])

    lines = capsys.readouterr().out.splitlines()
    assert f"{root / 'addon'}: 20 words; per 1,000: clauses 50.0, pronouns 50.0, metaphors 50.0" == lines[0]
    assert "  addon/module.py:3: clauses: The first comment says what" == lines[1]


@pytest.mark.parametrize(
    ("limits", "reported"),
    [
        ({"addon": check_prose.Limit(50, 50, 50), "README.md": check_prose.Limit(125, 125, 0)}, []),
        ({"addon": check_prose.Limit(50, 50, 49), "README.md": check_prose.Limit(124, 125, 0)}, ["addon", "README.md"]),
        ({"addon": check_prose.Limit(), "addon/module.py": check_prose.Limit(50, 50, 50)}, []),
    ],
)
def test_a_tree_over_its_limit_fails_the_check(
    root: Path,
    limits: dict[str, check_prose.Limit],
    reported: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without arguments each tree is compared with its own limits; a file counts in the most specific tree only."""
    assert root.is_dir()
    monkeypatch.setattr(check_prose, "LIMITS", limits)

    assert bool(reported) == check_prose.main([])
    assert reported == [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]


def test_the_trees_of_the_limits_exist() -> None:
    """A tree that is moved or renamed keeps its limit."""
    assert [] == [tree for tree in check_prose.LIMITS if not (check_prose.ROOT / tree).exists()]
