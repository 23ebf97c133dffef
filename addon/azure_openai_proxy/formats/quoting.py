"""Escaping of untrusted text for its output: a shell, Python source or a terminal.

Every exporter, view and log line uses these functions and has no escaping rules of its own.
"""

from __future__ import annotations

import math
import re
import shlex
from urllib.parse import unquote

__all__ = ["cause", "is_safe", "is_token", "line", "python", "shell", "shell_with_variable", "terminal"]

# Control characters (C0 except tab and newline, DEL, C1), line separators, bidirectional overrides, and lone surrogates, which no output
# can encode. The marks that right-to-left languages need are allowed, and so are the joiners of emoji.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_LINE = re.compile(_UNSAFE.pattern.replace("[", "[\t\n", 1))
_SHELL_PLAIN = re.compile(r"[A-Za-z0-9 :/._-]*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110

_LAID_OUT = 6  # levels of a Python literal that are printed on several lines
_DEEPEST = 90  # nesting levels that the parser of every Python version accepts, less a margin for the surrounding code
_WIDTH = 100


def is_token(text: str) -> bool:
    """Return whether `text` is a token of RFC 9110: a method or a header's name."""
    return bool(_TOKEN.fullmatch(text))


# Terminals


def terminal(text: str) -> str:
    r"""Return `text` with every control character escaped (`\x1b`), except tabs and newlines."""
    return _UNSAFE.sub(_escaped, text) if _UNSAFE.search(text) else text


def line(text: str) -> str:
    """Return `text` on one line: like `terminal`, but tabs and newlines are escaped too."""
    if text.isascii() and text.isprintable():  # nearly all texts, in a fifth of the time
        return text
    return _UNSAFE_IN_LINE.sub(_escaped, text) if _UNSAFE_IN_LINE.search(text) else text


def cause(error: BaseException, password: str | None) -> str:
    """Return the first line of an error's text, or else its type, on one line of up to 300 characters. The password is replaced."""
    text = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
    for secret in {password or "", unquote(password or "")} - {""}:
        text = text.replace(secret, "***")
    return line(text[:300])


def is_safe(text: str) -> bool:
    """Return whether `text` can be written to a terminal without escapes."""
    return not _UNSAFE.search(text)


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


# Shells


def shell(text: str) -> str:
    """Return `text` as one word for any POSIX shell.

    Raises:
        ValueError: `text` has control characters, on which a terminal would act when the word is pasted.
    """
    if not is_safe(text):
        raise ValueError("it has control characters")
    return shlex.quote(text)


def shell_with_variable(before: str, variable: str) -> str:
    """Return one word: `before` literally, then the value of an environment variable."""
    if _SHELL_PLAIN.fullmatch(before):
        return f'"{before}${variable}"'
    return f'{shell(before)}"${variable}"'


# Python


def python(value: object, indent: int = 0) -> str:
    """Return a value from JSON as a Python literal, with long containers on several lines.

    Raises:
        ValueError: Python has no literal for it: a number is not finite, or the nesting is too deep for Python's parser.
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
    """Write each part once and indent it at most `_LAID_OUT` levels, so the work is linear in the size of the value."""
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
