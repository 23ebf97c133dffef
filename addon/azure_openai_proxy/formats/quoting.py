"""Text from outside, quoted for the place it is written to: a shell, Python, a terminal.

Every exporter, view and log line uses these functions; none of them has rules of its own.
"""

from __future__ import annotations

import math
import re
import shlex

__all__ = ["is_safe", "is_token", "line", "python", "shell", "shell_with_variable", "terminal"]

# Control characters (C0 but for tab and newline, DEL, C1), characters that break lines or reorder what stands on them, and lone
# surrogates, which no output can encode. The marks that languages written from right to left need stay, and so does what joins emoji.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_LINE = re.compile(_UNSAFE.pattern.replace("[", "[\t\n", 1))
_SHELL_PLAIN = re.compile(r"[A-Za-z0-9 :/._-]*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110

_LAID_OUT = 6  # levels of a Python literal that get lines of their own
_DEEPEST = 90  # levels that Python's parser takes in any version, with room for what stands around them
_WIDTH = 100


def is_token(text: str) -> bool:
    """Whether `text` is what RFC 9110 allows as a method or a header's name."""
    return bool(_TOKEN.fullmatch(text))


# Terminals


def terminal(text: str) -> str:
    r"""`text` with every control character shown as an escape (`\x1b`). Tabs and newlines stay."""
    return _UNSAFE.sub(_escaped, text) if _UNSAFE.search(text) else text


def line(text: str) -> str:
    """The same for a text that has to stay on one line: tabs and newlines are shown as escapes, too."""
    return _UNSAFE_IN_LINE.sub(_escaped, text) if _UNSAFE_IN_LINE.search(text) else text


def is_safe(text: str) -> bool:
    """Whether `text` can be written to a terminal as it is."""
    return not _UNSAFE.search(text)


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


# Shells


def shell(text: str) -> str:
    """`text` as one word for any POSIX shell.

    Raises:
        ValueError: it has characters that no word should have; a terminal that the word is pasted into would act on them.
    """
    if not is_safe(text):
        raise ValueError("it has control characters")
    return shlex.quote(text)


def shell_with_variable(before: str, variable: str) -> str:
    """One word: `before` as it is, then the value of an environment variable."""
    if _SHELL_PLAIN.fullmatch(before):
        return f'"{before}${variable}"'
    return f'{shell(before)}"${variable}"'


# Python


def python(value: object, indent: int = 0) -> str:
    """A value that came from JSON as a literal, long containers over several lines.

    Raises:
        ValueError: Python has no literal for it: a number that is not finite, or deeper nesting than its parser takes.
    """
    _check(value)
    return _python(value, indent, 0)


def _check(value: object) -> None:
    level, depth = [value], 0
    while level:
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise ValueError("it has a number that is not finite")
        level = [part for item in level if isinstance(item, dict | list) for part in (item.values() if isinstance(item, dict) else item)]
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("it nests too deeply")


def _python(value: object, indent: int, depth: int) -> str:
    """Each part is written once, and indented no deeper than `_LAID_OUT`: the work is linear whatever the value is."""
    if not (isinstance(value, dict | list) and value) or depth >= _LAID_OUT:
        return repr(value)
    inner = indent + 4
    if isinstance(value, dict):
        opening, closing = "{", "}"
        parts = [f"{name!r}: {_python(item, inner, depth + 1)}" for name, item in value.items()]
    else:
        opening, closing = "[", "]"
        parts = [_python(item, inner, depth + 1) for item in value]
    if indent + sum(map(len, parts)) + 2 * len(parts) <= _WIDTH and not any("\n" in part for part in parts):
        return f"{opening}{', '.join(parts)}{closing}"
    pad = " " * inner
    return f"{opening}\n{''.join(f'{pad}{part},\n' for part in parts)}{' ' * indent}{closing}"
