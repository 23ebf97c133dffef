"""Removal of secrets and personal details from texts that leave the machine.

Keys are always removed. E-mail addresses, IP addresses, names of hosts, paths of files, and matches of a user's patterns are removed by
choice. A text that was removed once is removed everywhere, and always gets the same placeholder: `[key 1]`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import json
import math
import re
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from . import secret_forms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["DEEPEST", "KINDS", "BadPattern", "Choice", "Redactor", "parse"]

KINDS = ("emails", "ips", "hosts", "paths")
"""What can be removed by name; any other word is a pattern."""
MIN_SIMILARITY = 0.8
"""Least similarity of a word to one of `KINDS` for an error. Such a word would be a pattern that matches next to nothing."""
SHORTEST_LEARNED = 8
"""Characters of a removed secret that is then searched everywhere."""
MOST_LEARNED = 1_000
LARGEST_JSON = 1 << 20
"""Characters of a text that is searched as JSON, too."""
DEEPEST = 200
"""Levels of a value. Deeper ones are removed."""
DEEPEST_JSON = 8
"""Levels of JSON in texts of JSON that are searched as such."""
WINDOW = 16_000
"""Characters that one search passes over: a search of a long text would keep all other threads waiting."""
AHEAD = 6_000
"""Characters behind a window that a match in it may need. A match that is longer is found, too."""
LONGEST_CLAIM = 1_000
"""Characters of a data URL that may be a key instead of base64."""
LARGEST_FILE = 8 << 20
"""Characters of a file in a data URL that is searched for secrets; a larger one is removed."""

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]++(?:@|%40)(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}")
"""It is searched from the start of a word only, so that a long word takes linear time."""
_ESCAPE = r"\\u[0-9A-Fa-f]{4}"
_ESCAPED_EMAIL = re.compile(
    rf"(?:(?<![\w.+\\-])|(?<=\\[bfnrt\"/\\]))(?:[\w.+-]|{_ESCAPE})++(?:@|%40)(?:(?:[\w-]|{_ESCAPE}){{1,63}}\.){{1,8}}(?:[\w-]|{_ESCAPE}){{2,63}}"
)
"""An address in a text with escapes of JSON."""
_IP = re.compile(
    r"(?:(?<![\w.])|(?<=\\[bfnrt]))(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])"
    r"|(?:(?<![\w:.])|(?<=\\[bfnrt]))(?:[0-9a-fA-F]{0,4}:){2,7}(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F]{1,4}|(?<=::))(?!\w|:[\w:])"
)
_HOST = re.compile(
    r"(?P<before>://(?:[^\s/@\"'<>]{0,100}(?:\[key [0-9]{1,6}\])?@)?)(?P<value>[^\s/:\"'<>\[\]\\]{1,253})"
    r"|(?<![\w.-])(?P<name>(?:[^\W_](?:[\w-]{0,62})\.){1,8}(?:xn--[\w-]{2,59}|[^\W\d_]{2,24}))(?![\w-])"
)
_FILE_ENDS = """
    bat bin c cc cfg cjs class cmd conf cpp cs css csv db dll doc docx env exe flows gif go gz h hpp htm html
    ico in ini ipynb jar java jpeg jpg js json jsonl jsx kt lock log lua md mjs mp3 mp4 nix o odt out patch
    pdf php pl png pptx ps1 py pyc pyi rb rs rst scss sh so sql svg swift tar toml ts tsx ttf txt vue wav webp
    whl xlsx xml yaml yml zip zsh
"""
_FILES = frozenset(_FILE_ENDS.split())
"""Ends of file names. A name of two parts with one of them counts as a file's."""
_SIGN = r"[^\s/\"'`<>|\\:;,()\[\]{}]"
_BEFORE = r"(?:(?<![\w./\\])|(?<=\\[bfnrt])|(?<=file://))"
_WINDOWS_SIGN = r"[^\s\\/\"'`<>|:*?]"
_PATH = re.compile(
    rf"{_BEFORE}(?:~|\.{{1,2}})?/(?:{_SIGN}{{1,255}}(?: {_SIGN}{{1,64}}){{0,3}}/){{1,64}}{_SIGN}{{0,255}}"
    rf"|{_BEFORE}(?:~|\.{{1,2}})?/[\w-]{{1,200}}\.[A-Za-z0-9]{{1,10}}(?![\w/])"
    rf"|{_BEFORE}~/[\w.-]{{1,200}}"
    r"|\b[A-Za-z]:(?:\\{1,4}|/)"
    rf"(?:{_WINDOWS_SIGN}{{1,255}}(?: {_WINDOWS_SIGN}{{1,64}}){{0,3}}(?:\\{{1,4}}|/)){{0,64}}{_WINDOWS_SIGN}{{1,255}}"
    r"|(?<![\w\\])\\{2,16}[\w.-]{1,255}(?:\\{1,8}[\w.$ -]{1,255}){1,64}"
)
_DATA_URL = re.compile(r"data:([\w.+-]{0,60}/?[\w.+-]{0,80})[^,]{0,100};base64,")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*={0,2}\s*")
_IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"\xff\x0a")
_SOUND_STARTS = (
    b"RIFF",
    b"ID3",
    b"OggS",
    b"fLaC",
    b"FORM",
    b"\xff\xf1",
    b"\xff\xf9",
    b"\xff\xfa",
    b"\xff\xfb",
    b"\xff\xf3",
    b"\xff\xf2",
    b"\x1aE\xdf\xa3",
)
"""How media begin. MP4, AVIF and HEIC have their name after four bytes."""
_ENCODED = re.compile(
    r"\\+(?:u00(?P<json>[2-7][0-9A-Fa-f])|/)|%(?:25)*(?P<url>[2-7][0-9A-Fa-f])"
    r"|&(?:amp;)*(?:#(?P<decimal>[0-9]{2,3});|#[xX](?P<hex>[2-7][0-9A-Fa-f]);|(?P<name>amp|quot|apos|lt|gt);)"
)
"""A printable ASCII character in a text of JSON, a URL or HTML, which may be encoded several times."""
_ENTITIES = {"amp": "&", "quot": '"', "apos": "'", "lt": "<", "gt": ">"}
_BASE64_TEXT = re.compile(
    r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{20,}+"
    r"(?:(?:\r?\n|(?:\\{1,4}r)?\\{1,4}n)[ \t]{0,8}+[A-Za-z0-9+/_-]{4,}+)*+={0,2}"
)
DEEPEST_BASE64 = 3
"""Levels of base64 in base64 that are searched."""
_PAIRS = frozenset({"api-key", "authorization", "cookie", "ocp-apim-subscription-key", "proxy-authorization", "set-cookie", "x-api-key"})
"""Headers that are searched in lists of their name and value, too."""
_PLAIN = re.compile(r"[a-z_.]{1,40}")
_NAME = re.compile(r"[a-z_]{1,40}")
_STRUCTURE = frozenset({"block", "change", "finish", "finish_reason", "kind", "object", "operation", "role", "status", "type", "unit"})


def _is_structure(name: str, value: object) -> bool:
    """Whether a member gives a document its form, and is no text of a person."""
    return name in _STRUCTURE and isinstance(value, str) and _PLAIN.fullmatch(value) is not None


class BadPattern(ValueError):
    """A user's pattern is no regular expression, or a misspelled word of `KINDS`."""


class Pattern(Protocol):
    """What a redactor needs of a pattern. `replacement` gets the match, whose item 0 is the text."""

    @property
    def pattern(self) -> str: ...

    def sub(self, replacement: Callable[[Any], str], text: str, /) -> str: ...


class Choice(NamedTuple):
    kinds: frozenset[str] = frozenset()
    patterns: tuple[Pattern, ...] = ()


def parse(texts: Iterable[str]) -> Choice:
    """Parse `emails,ips,hosts,paths,REGEX`, given once or more.

    Raises:
        BadPattern: the message names the pattern.
    """
    kinds: set[str] = set()
    patterns: list[Pattern] = []
    for word in (word.strip() for text in texts for word in text.split(",")):
        if (kind := word.lower().removesuffix("s") + "s") in KINDS:  # "Email" is no pattern
            kinds.add(kind)
        elif re.fullmatch(r"[\w-]+", word) and (near := difflib.get_close_matches(word.lower(), KINDS, 1, MIN_SIMILARITY)):
            raise BadPattern(f"{word!r} is none of {', '.join(KINDS)}: did you mean {near[0]}? As a pattern, write it as ({word})")
        elif word:
            try:
                patterns.append(re.compile(word))
            except (re.error, RecursionError, OverflowError) as error:
                raise BadPattern(f"{word[:100]!r} is none of {', '.join(KINDS)} and no regular expression: {error}") from None
    return Choice(frozenset(kinds), tuple(patterns))


class Redactor:
    """Removes texts, with the same placeholder for the same text. `secrets`: texts that are removed in any case."""

    def __init__(self, choice: Choice = Choice(), secrets: Iterable[str] = ()) -> None:  # noqa: B008 - immutable
        self._choice = choice
        self._given: dict[str, str] = {}  # text → placeholder
        self._counts: dict[str, int] = {}
        self._learned: dict[str, None] = {}
        self._literal: re.Pattern[str] | None = None  # of the first `_compiled` learned ones
        self._compiled = 0
        self._depth = 0  # of JSON in texts of JSON
        self._base64_depth = 0
        for secret in secrets:
            self._learn(secret)
        self._compile()

    @property
    def removed(self) -> Mapping[str, int]:
        """How many different texts were removed, by kind: key, email, ip, host, path, pattern."""
        return dict(self._counts)

    def redact[Value](self, value: Value) -> Value:
        """Return a JSON value without what is to be removed. A secret that is found late is removed in what came before it, too."""
        found: Value = self._walk(value, 0)
        return self.again(found)

    def again[Value](self, value: Value) -> Value:
        """Return a value that `redact` has returned without the secrets that were found since."""
        self._compile()
        replaced: Value = value if self._literal is None else self._replace(value)
        return replaced

    def _replace(self, value: Any) -> Any:
        """The value without the secrets that are known by now."""
        if isinstance(value, str):
            assert self._literal
            return _sub(self._literal, lambda match: self._placeholder("key", match[0]), value)
        if isinstance(value, dict):
            return {
                name if _NAME.fullmatch(name) else self._replace(name): member if _is_structure(name, member) else self._replace(member)
                for name, member in value.items()
            }
        return [self._replace(item) for item in value] if isinstance(value, list) else value

    def text(self, text: str) -> str:
        """Return a text without what is to be removed."""
        if text.startswith("data:") and (match := _DATA_URL.match(text[:300])):
            return self._data_url(text, match)
        if len(text) <= LARGEST_JSON and self._depth < DEEPEST_JSON and text.lstrip()[:1] in ("{", "[", '"'):
            return self._json(text)
        return self._plain(text)

    def _json(self, text: str) -> str:
        """A text that may be JSON, such as the arguments of a tool call: its texts are searched without their escapes."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self._plain(text)
        self._depth += 1
        found = self._walk(value, 0)
        self._depth -= 1
        return self._plain(text if found == value else json.dumps(found, ensure_ascii=False))

    def _plain(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode() if not text.isascii() else text
        text = _BASE64_TEXT.sub(self._base64, self._encoded(text))
        for needle, pattern in secret_forms.SECRETS:
            if needle in text:
                text = _sub(pattern, lambda match: self._key(match[0]), text)
        for pattern in secret_forms.IN_CONTEXT:
            text = _sub(pattern, self._named, text)
        text = _sub(secret_forms.COOKIES, lambda match: secret_forms.COOKIE.sub(self._named, match[0]), text)
        if self._literal:
            text = _sub(self._literal, lambda match: self._placeholder("key", match[0]), text)
        kinds = self._choice.kinds
        if "emails" in kinds:
            for pattern in (_ESCAPED_EMAIL, _EMAIL) if "\\u" in text else (_EMAIL,):
                text = _sub(pattern, lambda match: self._placeholder("email", match[0]), text)
        if "ips" in kinds:
            text = _sub(_IP, self._ip, text)
        if "paths" in kinds:
            text = _sub(_PATH, lambda match: self._placeholder("path", match[0]), text)
        if "hosts" in kinds:
            text = _sub(_HOST, self._host, text)
        for chosen in self._choice.patterns:
            text = chosen.sub(lambda match: self._placeholder("pattern", match[0]) if match[0] else "", text)
        return text

    def _encoded(self, text: str) -> str:
        """The text without secrets in it that are written with escapes of JSON, URLs or HTML, which the patterns do not match."""
        decoded, origins = _without_escapes(text)
        if decoded is text:
            return text
        found: list[str] = []
        end = 0
        for start, stop, kind in _merged(self._spans(decoded)):
            first, last = origins(start), origins(stop)
            found += text[end:first], self._placeholder(kind, text[first:last])
            if kind == "key":
                self._learn(decoded[start:stop])
            end = last
        return "".join((*found, text[end:]))

    def _spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where secrets are in a text, and of which kind they are."""
        for needle, pattern in secret_forms.SECRETS:
            if needle in text:
                yield from ((*match.span(), "key") for match in _matches(pattern, text))
        for pattern in secret_forms.IN_CONTEXT:
            yield from _values(_matches(pattern, text))
        for cookies in _matches(secret_forms.COOKIES, text):
            yield from _values(secret_forms.COOKIE.finditer(text, *cookies.span()))
        kinds = self._choice.kinds
        if "emails" in kinds:
            yield from ((*match.span(), "email") for match in _matches(_EMAIL, text))
        if "ips" in kinds:
            yield from ((*match.span(), "ip") for match in _matches(_IP, text) if _is_ip(match[0]))
        if "paths" in kinds:
            yield from ((*match.span(), "path") for match in _matches(_PATH, text))
        if "hosts" in kinds:
            yield from (
                (*match.span(name), "host") for match in _matches(_HOST, text) if _is_host(match) for name in [match.lastgroup or 0]
            )

    def _base64(self, match: re.Match[str]) -> str:
        """A text in base64; a placeholder if a secret is in it."""
        written = re.sub(r"\\+[rn]|\s", "", match[0]).translate({45: "+", 95: "/"}).rstrip("=")
        content = base64.b64decode(written[: len(written) - (len(written) % 4 == 1)] + "==").replace(b"\0", b"")
        decoded = content.decode("utf-8", "replace")
        if self._base64_depth >= DEEPEST_BASE64 or decoded.count("\ufffd") * 10 > len(decoded):
            return match[0]
        self._base64_depth += 1
        found = self.text(decoded)
        self._base64_depth -= 1
        return match[0] if found == decoded else self._placeholder("base64 text", match[0])

    def _walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value) if value else value
        if depth > DEEPEST:
            return None
        if isinstance(value, dict):
            named = _named_in(value)
            return {
                self._member_name(str(name)): self._member(named if named and str(name).lower() == "value" else str(name), member, depth)
                for name, member in value.items()
            }
        if isinstance(value, list | tuple) and _is_pair(value):
            return [value[0], self._member(value[0], value[1], depth)]
        if isinstance(value, list | tuple):
            return [self._walk(item, depth + 1) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no such number

    def _member_name(self, name: str) -> str:
        """A name in lower case, as all names of a document's form are, stays."""
        return name if _NAME.fullmatch(name) else self.text(name)

    def _member(self, name: str, value: Any, depth: int) -> Any:
        if isinstance(value, list | tuple) and depth < DEEPEST and secret_forms.is_secret_member(name, "x" * secret_forms.SHORTEST_MEMBER):
            return [self._member(name, item, depth + 1) for item in value]  # headers with all their values
        if not isinstance(value, str):
            return self._walk(value, depth + 1)
        if _is_structure(name, value):
            return value
        if secret_forms.is_secret_member(name, value) and not value.startswith("[key "):
            return self._key(value)
        if name.lower() in secret_forms.HEADERS:
            return self._plain(f"{name}: {value}")[len(name) + 2 :]
        return self.text(value) if value else value

    def _data_url(self, text: str, match: re.Match[str]) -> str:
        """An image or a sound as it is; a file only if no secret is found in it."""
        kind, data = match[1].lower(), text[match.end() :]
        if kind.startswith(("image/", "audio/", "video/")) and "svg" not in kind and _BASE64.fullmatch(data) and _is_media(data):
            return text
        if len(data) > LARGEST_FILE:
            return f"[{kind or 'file'}]"
        try:
            content = base64.b64decode(data, validate=False).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            return f"[{kind or 'file'}]"
        clean = self.text(content) == content and self.text(kind) == kind
        if len(data) <= LONGEST_CLAIM:
            clean = clean and self._plain(data) == data
        return text if clean else f"[{kind or 'file'}]"

    def _placeholder(self, kind: str, text: str) -> str:
        if text not in self._given:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._given[text] = f"[{kind} {self._counts[kind]}]"
        return self._given[text]

    def _key(self, text: str) -> str:
        self._learn(text)
        return self._placeholder("key", text)

    def _learn(self, text: str) -> None:
        if len(text) >= SHORTEST_LEARNED and text not in self._learned and len(self._learned) < MOST_LEARNED:
            self._learned[text] = None
            if len(self._learned) > self._compiled * 9 // 8:  # each time would be quadratic
                self._compile()

    def _compile(self) -> None:
        if len(self._learned) > self._compiled:
            self._compiled = len(self._learned)
            self._literal = re.compile(_alternatives(sorted(self._learned, key=len, reverse=True)))

    def _named(self, match: re.Match[str]) -> str:
        value = match["value"]
        return match["before"] + (value if value.startswith("[key") else self._key(value))

    def _ip(self, match: re.Match[str]) -> str:
        return self._placeholder("ip", match[0]) if _is_ip(match[0]) else match[0]

    def _host(self, match: re.Match[str]) -> str:
        if match["value"] is not None:
            return str(match["before"]) + self._host_of(match["value"])
        return self._host_of(match["name"]) if _is_host(match) else str(match["name"])

    def _host_of(self, name: str) -> str:
        return self._placeholder("host", name) if not name.startswith("[") else name


def _without_escapes(text: str) -> tuple[str, Callable[[int], int]]:
    """Decode escapes. Return the text itself if it has none, and a function from a place in the decoded text to that in `text`.

    Only the places behind escapes are kept, since texts may have millions of characters.
    """
    pieces: list[str] = []
    behind, sources = array("q", [0]), array("q", [0])
    end = 0
    for match in _ENCODED.finditer(text):
        if (character := _decoded(match)) != match[0]:
            pieces += text[end : match.start()], character
            behind.append(behind[-1] + match.start() - end + 1)
            sources.append(end := match.end())

    def origin(place: int) -> int:
        run = bisect_right(behind, place) - 1
        return sources[run] + place - behind[run]

    return ("".join((*pieces, text[end:])) if pieces else text), origin


def _decoded(match: re.Match[str]) -> str:
    """The character of an escape."""
    if name := match["name"]:
        return _ENTITIES[name]
    if decimal := match["decimal"]:
        return chr(int(decimal)) if 32 <= int(decimal) < 127 else match[0]
    return chr(int(code, 16)) if (code := match["json"] or match["url"] or match["hex"]) and code.lower() != "7f" else "/"


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """All matches, as `finditer` has them, found in one window after the other."""
    at = 0
    while at < len(text):
        limit, end = at + WINDOW, min(len(text), at + WINDOW + AHEAD)
        at = limit
        for found in pattern.finditer(text, limit - WINDOW, end):
            if found.start() >= limit:
                break
            match = pattern.match(text, found.start()) or found if found.end() == end else found
            yield match
            at = max(at, match.end())
            if match.end() > end:
                break


def _sub(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str) -> str:
    """`pattern.sub`, in windows."""
    pieces: list[str] = []
    end = 0
    for match in _matches(pattern, text):
        pieces += text[end : match.start()], replacement(match)
        end = match.end()
    return "".join((*pieces, text[end:])) if pieces else text


def _alternatives(words: list[str], level: int = 1) -> str:
    """A pattern of any of the words, which are of 8 characters and more. Words with the same start are grouped: a search compares fewer."""
    if len(words) < 8 or level == SHORTEST_LEARNED:
        return "|".join(map(re.escape, words))
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[0], []).append(word[1:])
    return "|".join(f"{re.escape(first)}(?:{_alternatives(rest, level + 1)})" for first, rest in groups.items())


def _merged(spans: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The spans in order. Those that overlap become one, of the kind of the first."""
    found: list[tuple[int, int, str]] = []
    for start, stop, kind in sorted(spans):
        if found and start < found[-1][1]:
            before, end, first = found[-1]
            found[-1] = before, max(end, stop), first
        else:
            found.append((start, stop, kind))
    return found


def _values(matches: Iterable[re.Match[str]]) -> Iterator[tuple[int, int, str]]:
    return ((*match.span("value"), "key") for match in matches if not match["value"].startswith("[key"))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text != "::"


def _is_host(match: re.Match[str]) -> bool:
    """Whether a match is the name of a host, and not that of a file."""
    if match["value"] is not None:
        return not match["value"].startswith("[")
    labels = match["name"].lower().split(".")
    return len(labels) > 2 or labels[1] not in _FILES


def _is_media(data: str) -> bool:
    """Whether base64 begins as an image or a sound does, or is long and no text. What only claims to be an image is searched."""
    written = "".join(data[:LONGEST_CLAIM].split()).translate({45: "+", 95: "/"}).rstrip("=")
    start = base64.b64decode(written[: len(written) // 4 * 4])
    if start.startswith((*_IMAGE_STARTS, *_SOUND_STARTS)) or start[4:8] == b"ftyp":
        return True
    text = start.decode("utf-8", "replace")
    return len(data) > LONGEST_CLAIM and 10 * sum(sign < "\t" or sign == "\ufffd" for sign in text) > len(text)


def _named_in(value: Mapping[Any, Any]) -> str:
    """The name in an object of a name and a value, as of a header or of a variable."""
    return next((value[name] for name in ("name", "Name", "key", "Key") if isinstance(value.get(name), str)), "")


def _is_pair(value: Sequence[Any]) -> bool:
    """Whether a list is a header's name and value."""
    return len(value) == 2 and all(isinstance(one, str) for one in value) and value[0].lower() in _PAIRS
