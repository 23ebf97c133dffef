"""The streaming rewriter for multipart forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.formats.multipart import CHUNK, MAX_HEAD, MAX_PARTS, Edit, Field, Lines, Part, Rewriter, boundary, field, values

if TYPE_CHECKING:
    from collections.abc import Callable

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/mpeg\r\n\r\n'
    b"\r\n--x model\r\n--bb\r\n\r\n--b-\r\n"
    b"--b \t\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper-1\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nnameless\r\n--b--\r\nend"
)
RENAMED = FORM.replace(b"whisper-1", b"WHISPER-1")


def whole(rewriter: Rewriter, form: bytes) -> bytes:
    return rewriter.feed(form) + rewriter.end()


def model(part: Part) -> Edit | None:
    return Field(str.upper) if part.name == "model" else None


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


@given(st.lists(st.integers(min_value=0), max_size=40), st.sampled_from([FORM, b"preamble\r\n" + FORM, b"\r\n" + FORM]))
def test_any_pieces_give_the_same_form(cuts: list[int], form: bytes) -> None:
    """The output does not depend on the chunks, also if a boundary is split."""
    rewriter = Rewriter(b"b", model)
    out = b"".join(map(rewriter.feed, pieces(form, cuts))) + rewriter.end()
    assert form.replace(b"whisper-1", b"WHISPER-1") == out


def test_byte_by_byte() -> None:
    """The form may arrive in single bytes."""
    rewriter = Rewriter(b"b", model)
    assert RENAMED == b"".join(rewriter.feed(FORM[i : i + 1]) for i in range(len(FORM))) + rewriter.end()


@given(st.binary(), st.lists(st.integers(min_value=0)), st.sampled_from([b"", FORM, FORM[:-20]]))
def test_without_an_edit_the_bytes_are_the_same(data: bytes, cuts: list[int], before: bytes) -> None:
    """Without an edit the bytes are unchanged, also if they are not a form."""
    rewriter = Rewriter(b"b", lambda _: None)
    assert before + data == b"".join(map(rewriter.feed, pieces(before + data, cuts))) + rewriter.end()


@pytest.mark.parametrize("end", range(len(FORM)))
def test_a_form_that_is_cut_loses_nothing(end: int) -> None:
    """A truncated form loses no bytes: the end sends the buffered ones."""
    assert FORM[:end].lower() == whole(Rewriter(b"b", model), FORM[:end]).lower()


def test_a_file_is_not_held() -> None:
    """A file is sent as it arrives, except for bytes that may begin the next boundary."""
    rewriter = Rewriter(b"b", model)
    rewriter.feed(FORM[: FORM.index(b"model\r\n")])
    assert (b"x" * 1000, b"x\r", b"\r\nx") == (rewriter.feed(b"x" * 1000), rewriter.feed(b"x\r\r"), rewriter.feed(b"\nx"))


def test_a_head_without_end_is_none() -> None:
    """After a part's headers without an end the rest passes unchanged."""
    form = b"--b\r\n" + b"x" * MAX_HEAD + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--b--'
    rewriter = Rewriter(b"b", model)
    assert form == b"".join(map(rewriter.feed, pieces(form, [10, MAX_HEAD + 20]))) + rewriter.end()


def test_a_false_boundary_is_content() -> None:
    """A false boundary inside a part is passed to the edit as content."""
    seen: list[bytes] = []

    def note(line: bytes) -> bytes:
        seen.append(line)
        return b""

    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\none\r\n--bother\r\n\r\n--b--\r\n'
    out = whole(Rewriter(b"b", lambda _: Lines(note, 100)), form)

    assert [b"one\r", b"--bother\r", b""] == seen
    assert b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n\n\n\r\n--b--\r\n' == out


# Edits


def edited(edit: Edit, *data: bytes) -> bytes:
    return b"".join(map(edit.feed, data)) + edit.end()


@pytest.mark.parametrize(
    "data, out",
    [
        ((b"mod", b"el"), b"MODEL"),
        ((), b""),
        ((b"\xff",), b"\xff"),
        ((b"x" * 8, b"y"), b"x" * 8 + b"y"),
        ((b"x" * 9, b"y"), b"x" * 9 + b"y"),
    ],
    ids=["short", "empty", "no text", "a little too long", "too long at once"],
)
def test_a_field_is_replaced_as_a_whole_or_not_at_all(data: tuple[bytes, ...], out: bytes) -> None:
    """A field is replaced as a whole, and never in part."""
    assert out == edited(Field(str.upper, limit=8), *data)


@pytest.mark.parametrize(
    "data, out",
    [
        ((b"a\nb\nc",), b"A\nB\nC"),
        ((b"a\r\nb\r\n",), b"A\r\nB\r\n"),
        ((b"a", b"b\nc", b"d", b"\n"), b"AB\nCD\n"),
        ((b"abcdefghi", b"jk\nlm"), b"abcdefghijk\nLM"),
        ((b"abcd", b"efghi", b"j"), b"abcdefghij"),
        ((b"\n\n",), b"\n\n"),
    ],
    ids=["at once", "CRLF", "in pieces", "too long", "too long to its end", "empty"],
)
def test_lines_are_replaced_one_by_one(data: tuple[bytes, ...], out: bytes) -> None:
    """A line that exceeds the limit passes unchanged; the next one is replaced again."""
    assert out == edited(Lines(bytes.upper, limit=8), *data)


@given(st.lists(st.binary()), st.binary())
def test_lines_are_the_same_in_any_pieces(data: list[bytes], mark: bytes) -> None:
    """The replacement of lines does not depend on the chunks."""
    change: Callable[[bytes], bytes] = lambda line: mark[:1] + line  # noqa: E731
    assert edited(Lines(change, 1 << 20), b"".join(data)) == edited(Lines(change, 1 << 20), *data)


# Fields


@pytest.mark.parametrize(
    "content_type, separator",
    [
        ("multipart/form-data; boundary=b", b"b"),
        ('Multipart/Form-Data; charset=x; Boundary="b c"', b"b c"),
        ("multipart/form-data; boundary=b; charset=x", b"b"),
        ("multipart/form-data", None),
        ("application/json; boundary=b", None),
        ("", None),
    ],
)
def test_the_boundary(content_type: str, separator: bytes | None) -> None:
    """The boundary is read with or without quotes, from multipart types only."""
    assert separator == boundary(content_type)


@pytest.mark.parametrize(
    "form", [FORM, b"preamble\r\n" + FORM, FORM.replace(b"\r\n--x", b"x" * 3 * CHUNK)], ids=["plain", "preamble", "large"]
)
def test_a_forms_field_is_found(form: bytes) -> None:
    """A field is found by its own name, and not by a file's name or content."""
    assert "whisper-1" == field(form, "multipart/form-data; boundary=b", "model")


@pytest.mark.parametrize(
    "body, content_type",
    [
        (FORM, "multipart/form-data"),
        (FORM, "multipart/form-data; boundary=other"),
        (FORM[: FORM.index(b"whisper") + 3], "multipart/form-data; boundary=b"),
        (FORM.replace(b"name=model", b"name=other"), "multipart/form-data; boundary=b"),
        (FORM.replace(b"name=model", b"nothing"), "multipart/form-data; boundary=b"),
        (b"--b", "multipart/form-data; boundary=b"),
        (b"", "multipart/form-data; boundary=b"),
    ],
)
def test_a_form_without_the_field(body: bytes, content_type: str) -> None:
    """A form without the field, or one that ends before it, has no value."""
    assert None is field(body, content_type, "model")


# Work


def steps(form: bytes) -> int:
    rewriter = Rewriter(b"b", model)
    assert form == b"".join(rewriter.feed(form[start : start + CHUNK]) for start in range(0, len(form), CHUNK)) + rewriter.end()
    return rewriter.steps


HEAD = b"content-disposition:" * (MAX_HEAD // 20 - 1)


@pytest.mark.parametrize(
    "piece",
    [
        b"--b\r\n\r\n\r\n",
        b"--b\r\n" + HEAD + b"\r\n\r\n\r\n",
        b"--b\r\ncontent-disposition:;name=model\r\n\r\n\r\n",
        b"\r\n--bb",
        b"\r\n--b-",
        b"\r\n--b" + b" " * 70,
        b"\r\r\n\r",
    ],
    ids=["tiny parts", "long heads", "models", "longer boundaries", "half an end", "spaces", "returns"],
)
def test_the_work_is_bounded_for_repeated_boundaries(piece: bytes) -> None:
    """The number of steps is bounded by feeds and boundaries, and the bytes between two steps are examined once."""
    for size in (1, 2, 4):
        form = piece * (size * 200_000 // len(piece))
        assert steps(form) <= 2 * MAX_PARTS + 2 * (len(form) // CHUNK + 1)


@pytest.mark.parametrize("parts, found", [(MAX_PARTS, "whisper-1"), (MAX_PARTS + 1, None)])
def test_a_field_is_searched_in_a_limited_number_of_parts(parts: int, found: str | None) -> None:
    """A field is searched in a limited number of parts; after them the form passes unchanged."""
    form = b"--b\r\n\r\n\r\n" * (parts - 1) + FORM[FORM.index(b"--b \t") :]
    assert found == field(form, "multipart/form-data; boundary=b", "model")


def test_an_edit_ends_at_the_limit_of_parts() -> None:
    """When the limit of parts is reached, the open edit sends its buffered bytes in the right place."""
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na' + b"\r\n--bb" * (MAX_PARTS + 1)
    out = whole(Rewriter(b"b", lambda _: Field(str.upper, limit=len(form))), form)
    assert form.replace(b"\na\r", b"\nA\r").replace(b"--bb", b"--BB", MAX_PARTS - 1) == out


def test_only_the_first_disposition_names_a_part() -> None:
    """Only the first header named content-disposition names a part."""
    form = (
        b"--b\r\nContent-Disposition: form-data\r\nContent-Disposition: form-data; name=model\r\n\r\na\r\n"
        b"--b\r\nX-Content-Disposition: form-data; name=model\r\n\r\na\r\n--b--"
    )
    assert None is field(form, "multipart/form-data; boundary=b", "model")


def test_a_field_in_single_bytes_is_joined_once() -> None:
    """A field that arrives in single bytes is joined once."""
    edit = Field(str.upper, limit=4)
    assert [b"", b"", b"", b"", b"abcde", b"f"] == [edit.feed(data.encode()) for data in "abcdef"]


D = b"Content-Disposition: form-data; "


def parts(*heads_and_values: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--b\r\n" + head + b"\r\n\r\n" + value + b"\r\n" for head, value in heads_and_values) + b"--b--\r\n"


@pytest.mark.parametrize(
    "head",
    [
        D + b'name="model"',
        D + b"name=model",
        D + b'name = "model"',
        D + b"NAME=model; x=y",
        D + b'name="mo\\del"',
        D + b"name*=utf-8''mod%65l",
        b'content-disposition : form-data;\r\n\tname="model"',
        b'X: y\nContent-Disposition: form-data; name="model"',
        D + b'filename="name=x"; name="model"',
    ],
)
def test_spellings_of_a_name(head: bytes) -> None:
    """A second field is found in each spelling that a parser may accept."""
    form = parts((D + b'name="model"', b"one"), (head, b"two"))
    assert (["one", "two"], True) == values(form, "multipart/form-data; boundary=b", "model")


@pytest.mark.parametrize(
    "head", [D + b'name="x"; name="model"', D + b"name=\"x\"; name*=utf-8''model", D + b"name=x\r\n" + D + b"name=model"]
)
def test_a_part_with_several_names(head: bytes) -> None:
    """It is no certain form, because parsers take different ones."""
    assert not values(parts((head, b"one")), "multipart/form-data; boundary=b", "model")[1]


@pytest.mark.parametrize(
    ("form", "content_type", "certain"),
    [
        (parts((D + b"name=a", b"x")) * 2, "multipart/form-data; boundary=b", True),
        (parts((D + b"name=a", b"x")), "multipart/form-data; boundary=c; boundary=b", False),
        (parts((D + b"name=a", b"x")), "multipart/form-data; boundary*=utf-8''b; boundary=c", False),
        (parts((D + b"name=a", b"x")), "multipart/form-data", False),
        (b"{}", "application/json", True),
        (b"--b\r\n\r\n\r\n" * (MAX_PARTS + 1), "multipart/form-data; boundary=b", False),
        (parts((b"x" * (MAX_HEAD + CHUNK), b"")), "multipart/form-data; boundary=b", False),
    ],
    ids=["epilogue", "two boundaries", "an extended one", "none", "no form", "parts", "head"],
)
def test_whether_a_form_is_certain(form: bytes, content_type: str, certain: bool) -> None:
    """A form that is not read to its end may have other fields than those that were found."""
    assert certain == values(form, content_type, "model")[1]


@pytest.mark.parametrize("lost", [b"--b\r\n\r\n\r\n" * (MAX_PARTS + 1), b"--b\r\n" + b"x" * (MAX_HEAD + CHUNK)])
def test_a_strict_rewriter_lets_nothing_pass_unread(lost: bytes) -> None:
    """The rest is blank and as long as it was; the text behind the last boundary of a complete form passes."""
    form = lost + parts((D + b"name=model", b"secret"))
    out = whole(Rewriter(b"b", lambda _: None, strict=True), form)
    assert (len(form), False, True) == (len(out), b"secret" in out, out.endswith(b"---"))
    complete = parts((D + b"name=model", b"x")) + b"epilogue"
    assert complete == whole(Rewriter(b"b", lambda _: None, strict=True), complete)
