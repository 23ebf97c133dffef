"""Removal of secrets and personal details."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import tracemalloc
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.inspection.sharing import redact
from azure_openai_proxy.inspection.sharing.redact import Redactor
from support.planted import DETAILS, KEYS, OPTIONS, PLANTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.parametrize(("secret", "text"), KEYS)
def test_keys_are_always_removed(secret: str, text: str) -> None:
    """No option is needed for a key, of OpenAI, Azure or another vendor."""
    found = Redactor().text(text)
    assert "[key 1]" in found
    assert secret not in found


@pytest.mark.parametrize(("detail", "text"), DETAILS)
def test_details_are_removed_by_choice(detail: str, text: str) -> None:
    """A detail stays without the option and is removed with it."""
    assert detail in Redactor().text(text)
    assert detail not in Redactor(redact.parse(OPTIONS)).text(text)


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 1000 and tokens: 5",
        "the tokenizer is at 12:30:45 on 2026-11-28T10:00:00.000Z",
        "open main.py, see README.md and config.yaml, v1.2.3",
        "either/or, 3/4, and/or",
        "call_0123456789abcdef0123456789abcdef chatcmpl-0123456789abcdefghijklmnopqrs",
        "std::vector :: [::] 999.999.999.999",
        "task-based, risk-free, a secret is secret",
        "the basic functionality, Basic Configuration and bearer authentication",
        "DB_PASS=$DB_PASS and TESTS_PASS=12, all_pass: true, DB_PASS=<password>",
        "use --password to log in; the --password option and --token are read from --password-file x",
        "pg_dump --no-password mydb, docker build --secret id=a,src=b, mysql -u root -p shop, mysql -P 3306, cp -p a b",
        "curl -u $USER:$PASS /x, curl /x:y",
        "a cookie: sweet; Set-Cookie is a header, Authorization: Required",
        "password: the one that you chose\npassword: true\n",
    ],
)
def test_other_texts_stay(text: str) -> None:
    """Numbers, times, files and ids of calls are neither keys nor details."""
    assert text == Redactor(redact.parse(["emails,ips,hosts,paths"])).text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DB_PASS=abc", "DB_PASS=[key 1]"),
        ("export SMTP_PW='two words'", "export SMTP_PW='[key 1]'"),
        ('{"db_pass": "abc",', '{"db_pass": "[key 1]",'),
        ("PGPASSWORD=abc psql", "PGPASSWORD=[key 1] psql"),
        ("a:\n  password: abc\n  user: b", "a:\n  password: [key 1]\n  user: b"),
        ("- password: 'a b c'\r\n", "- password: '[key 1]'\r\n"),
        ("run --password abc now", "run --password [key 1] now"),
        ("run --db-password='a b' --x", "run --db-password='[key 1]' --x"),
        ('["--password", "abc"]x', '["--password", "[key 1]"]x'),
        ("login --token abc", "login --token [key 1]"),
        ("mysql -u root -pabc shop", "mysql -u root -p[key 1] shop"),
        ("mysqldump -h db -p 'abc1' shop", "mysqldump -h db -p '[key 1]' shop"),
        ("sshpass -p abc ssh x", "sshpass -p [key 1] ssh x"),
        ("docker login -u me -p abc x", "docker login -u me -p [key 1] x"),
        ("curl -sSu me:abc https://x", "curl -sSu me:[key 1] https://x"),
        ('curl https://x \\\n --user "me:abc"', 'curl https://x \\\n --user "me:[key 1]"'),
        ("Authorization: Basic YTpi=", "Authorization: Basic [key 1]"),
        ("> authorization: 0123abcd\r\n", "> authorization: [key 1]\r\n"),
        ("Cookie: a=xyz; b=xyz", "Cookie: a=[key 1]; b=[key 1]"),
        ("set-cookie: sid=abc; Path=/; HttpOnly", "set-cookie: sid=[key 1]; Path=/; HttpOnly"),
        ("curl --cookie 'sid=abc' x", "curl --cookie 'sid=[key 1]' x"),
        ({"password": "abc", "passwd": "string", "db_pass": ""}, {"password": "[key 1]", "passwd": "string", "db_pass": ""}),
        ({"Cookie": "sid=abc", "cookie": "sweet"}, {"Cookie": "sid=[key 1]", "cookie": "sweet"}),
        ({"password": "abc", "x" * 61 + "password": "abc"}, {"password": "[key 1]", "x" * 61 + "password": "abc"}),
    ],
)
def test_secrets_by_their_context(text: object, expected: object) -> None:
    """Passwords of variables, commands, headers and documents, however short; the rest of the line stays."""
    redactor = Redactor()
    assert expected == redactor.redact(text)
    assert expected == redactor.redact(expected), "a placeholder stays"


PHRASES = st.sampled_from(
    [
        "a",
        "passwords",
        "passphrase",
        "secret",
        "token",
        "curl",
        "mysql",
        "sshpass",
        "user",
        "pass",
        "option",
        "is",
        "and",
        "changed",
        "DB_PASS",
        "PGPASSWORD",
        "12",
        "field.",
        "header,",
        "the password",
        "--password option",
        "use --token to",
        "docker login",
        "Set-Cookie and Cookie",
        "Authorization header",
        "password?",
    ]
)


@given(st.lists(PHRASES, min_size=2, max_size=12))
def test_prose_stays(words: list[str]) -> None:
    """Sentences with the words that announce a secret, but without one."""
    assert " ".join(words) == Redactor().text(" ".join(words))


def test_the_same_text_has_the_same_placeholder() -> None:
    """Placeholders are counted by kind, and a secret that is found late is removed everywhere."""
    redactor = Redactor(redact.parse(["emails"]), ["configured-key"])
    value: dict[str, Any] = {
        "a": ["I said hunter2hunter2 to a@example.com", "b@example.com, configured-key"],
        "password": "hunter2hunter2",
        "role": "user",
        "n": 5,
        "b@example.com": None,
        "empty": "",
    }
    found = redactor.redact(value)
    (key,) = re.findall(r"I said (\[key \d\]) to \[email 1\]", found["a"][0])
    assert {"[key 1]", "[key 2]"} == {key, found["a"][1].removeprefix("[email 2], ")}
    del found["a"]
    assert {"password": key, "role": "user", "n": 5, "[email 2]": None, "empty": ""} == found
    assert {"key": 2, "email": 2} == redactor.removed


def test_structure_stays() -> None:
    """A pattern of the user does not change words that give a document its form."""
    value = {"role": "assistant", "type": "function", "content": "the assistant", "kind": "An Assistant"}
    expected = {"role": "assistant", "type": "function", "content": "the [pattern 1]", "kind": "An Assistant"}
    assert expected == Redactor(redact.parse(["assistant"])).redact(value)
    assert "ab" == Redactor(redact.parse(["x*"])).text("ab"), "a pattern that matches nothing"


def test_structure_stays_with_secrets_of_its_words() -> None:
    """A secret that is also a word of the form is removed from texts only."""
    value = {"role": "assistant", "block": "unexplained", "content": ["token: assistant", "secret=unexplained", "assistant"]}
    expected = ["token: [key 1]", "secret=[key 2]", "[key 1]"]
    assert {**value, "content": expected} == Redactor().redact(value)


def test_numbers_that_json_cannot_have() -> None:
    """A number that is not finite becomes null."""
    assert [None, None, 1.5] == Redactor().redact([math.nan, math.inf, 1.5])


def test_many_secrets_need_few_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for known secrets is not made again for each new one."""
    made: list[str] = []
    compile_one = re.compile

    def counted(pattern: str) -> re.Pattern[str]:
        made.append(pattern)
        return compile_one(pattern)

    monkeypatch.setattr(re, "compile", counted)
    texts = [f"password=secret-{number:04}" for number in range(1000)]
    assert f"password=[key {len(texts)}]" == Redactor().redact(texts)[-1]
    assert len(made) < 60


def test_files_in_data_urls() -> None:
    """Images and sounds stay, and a file only if it has no secret."""
    clean, secret = (base64.b64encode(text.encode()).decode() for text in ("nothing", f"key {KEYS[0][0]}"))
    image = f"data:image/png;base64,{clean}"
    for text, expected in (
        (image, image),
        (f"data:text/plain;base64,{clean}", f"data:text/plain;base64,{clean}"),
        (f"data:text/plain;base64,{secret}", "[text/plain]"),
        (f"data:;base64,{secret}", "[file]"),
        (f"data:image/svg+xml;base64,{secret}", "[image/svg+xml]"),
        (f"data:image/png;base64,{KEYS[0][0]}!", "[image/png]"),
        ("data:text/plain;base64,A", "[text/plain]"),
        ("data:x;base64," + "A" * (redact.LARGEST_FILE + 1), "[x]"),
        ("data: no URL", "data: no URL"),
    ):
        assert expected == Redactor().text(text)


def test_json_in_texts() -> None:
    """The texts in JSON are searched without their escapes, also in JSON of JSON; other texts are searched with them."""
    secret, _ = KEYS[0]
    details = json.dumps({"a": [f"x\n{secret}\n10.20.30.40\n/home/alice/x"], "b": 1})
    redactor = Redactor(redact.parse(["ips,paths"]))
    assert '{"a": ["x\\n[key 1]\\n[ip 1]\\n[path 1]"], "b": 1}' == redactor.text(details)
    assert secret not in redactor.text(json.dumps({"c": details}))
    assert "[key 1]" in redactor.text(details[:-1])
    assert '{ "a" : 1 }' == redactor.text('{ "a" : 1 }')
    nested = secret
    for _ in range(12):
        nested = json.dumps([nested])
    assert secret not in redactor.text(nested)
    assert "[1, nothing" == redactor.text("[1, nothing")


def test_secrets_in_json_that_are_found_late() -> None:
    """A secret that a later member shows is removed from earlier members and names too."""
    value = {"a": ["see hunter2hunter2"], "Name hunter2hunter2": 1, "b": "password=hunter2hunter2"}
    assert {"a": ["see [key 1]"], "Name [key 1]": 1, "b": "password=[key 1]"} == Redactor().redact(value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"mail m\u00fcller@b\u00fccher.example now", "mail [email 1] now"),
        (r"\u4f60\njane@example.com, \"joe@example.org\"", r"\u4f60\n[email 1], \"[email 2]\""),
        (r"\u4f60 C:\jane@example.com", r"\u4f60 C:\[email 1]"),
    ],
)
def test_addresses_in_texts_with_escapes(text: str, found: str) -> None:
    """An address is removed as a whole, with the escapes in it and not those before it."""
    assert found == Redactor(redact.parse(["emails"])).text(text)


ENCODINGS: list[Callable[[str], str]] = [
    lambda text: (
        "log: " + json.dumps("".join(text.replace("-", "\u2011"))).replace("\\u2011", "\\u002d").replace("/", r"\/").replace("=", r"\u003d")
    ),
    lambda text: f" \n{json.dumps({'a': text})}",
    lambda text: "GET /?q=" + quote(text, safe=""),
    lambda text: "GET /?q=" + quote(quote(text, safe=""), safe=""),
    lambda text: "<p>" + html.escape(text).replace("=", "&#61;").replace("-", "&#x2d;").replace("/", "&amp;#47;"),
    lambda text: "base64: " + base64.b64encode(f"a file\n{text}\n".encode()).decode(),
    lambda text: "-enc " + base64.b64encode(text.encode("utf-16-le")).decode().rstrip("="),
    lambda text: base64.encodebytes(base64.b64encode(text.encode())).decode(),
    lambda text: '{"content": "' + base64.encodebytes(f"#{text}".encode() * 3).decode().replace("\n", r"\n") + '", ...',
]


@pytest.mark.parametrize(("secret", "text"), KEYS)
@pytest.mark.parametrize("encode", ENCODINGS)
def test_encoded_keys(encode: Callable[[str], str], secret: str, text: str) -> None:
    """Keys in escapes of JSON, URLs and HTML, and in base64, are removed."""
    written = encode(text)
    found = Redactor().text(written)
    assert found != written
    for _ in range(4):
        found = html.unescape(unquote(found.replace(r"\u002d", "-").replace(r"\/", "/").replace(r"\u003d", "=")))
    assert secret not in found


@pytest.mark.parametrize(
    "text",
    [
        "100%25 of caf%C3%A9, a&lt;b &amp;&amp; c&#62;d, C:\\/x, \\u0041bc, %7F &#7; &#200;",
        "src/components/ConversationView/index and aVeryLongIdentifierOfTheProgram",
        base64.b64encode(b"nothing but words, in a text").decode(),
        base64.b64encode(bytes(range(256))).decode(),
        "QUFBQUFBQUFBQUFBQUFBQUFBQUFBA",
    ],
)
def test_encoded_texts_stay(text: str) -> None:
    """Escapes and base64 without a secret are not changed."""
    assert text == Redactor(redact.parse(["emails,ips,hosts"])).text(text)


def test_encoded_details() -> None:
    """Details are removed from encoded texts by choice, and those that overlap as one."""
    text = "q=%6Dail%20a%2Db@example.com%20at%20%2Fhome%2Falice%2Fx%20on%2010%2E0.0.1%2C%20www%2Eexample.org%20x%2Epy"
    assert text == Redactor().text(text)
    found = Redactor(redact.parse(["emails,ips,hosts,paths"])).text(text)
    for detail in ("example", "alice", "10%2E"):
        assert detail not in found
    assert found.endswith("%20x%2Epy")


def test_base64_in_base64_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base64 that is encoded more often is not searched."""
    monkeypatch.setattr(redact, "DEEPEST_BASE64", 1)
    one = base64.b64encode(f"key {KEYS[0][0]}".encode())
    assert "[base64 text 1]" == Redactor().text(one.decode())
    two = base64.b64encode(one).decode()
    assert two == Redactor().text(two)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"name": "DB_PASSWORD", "value": "abc"}], [{"name": "DB_PASSWORD", "value": "[key 1]"}]),
        ({"Key": "api-key", "Value": "abcdefgh"}, {"Key": "api-key", "Value": "[key 1]"}),
        ({"name": "Cookie", "value": "sid=abc"}, {"name": "Cookie", "value": "sid=[key 1]"}),
        ({"name": "city", "value": "Oslo"}, {"name": "city", "value": "Oslo"}),
        ({"api-key": ["abcdefgh", 5]}, {"api-key": ["[key 1]", 5]}),
        ([["Api-Key", "abcdefgh"], ["a", "b"]], [["Api-Key", "[key 1]"], ["a", "b"]]),
        ({"required": ["password", "username"]}, {"required": ["password", "username"]}),
        ('env: [{"name": "DB_PASSWORD", "value": "abcd"}]', 'env: [{"name": "DB_PASSWORD", "value": "[key 1]"}]'),
        ("- name: DB_PASSWORD\n  value: abcd\n", "- name: DB_PASSWORD\n  value: [key 1]\n"),
        ('<add key="Password" value="abcd"/>', '<add key="Password" value="[key 1]"/>'),
        ("<s:password> abcd</s:password>", "<s:password> [key 1]</s:password>"),
        ("{'api-key': b'abcdefgh'}", "{'api-key': b'[key 1]'}"),
        ("[(b'api-key', b'abcdefgh')]", "[(b'api-key', b'[key 1]')]"),
        ("setx OPENAI_API_KEY abcd; set -gx TOKEN abcde", "setx OPENAI_API_KEY [key 1]; set -gx TOKEN [key 2]"),
        ('api_key = """abcd"""', 'api_key = """[key 1]"""'),
    ],
)
def test_secrets_with_their_names_beside_them(value: object, expected: object) -> None:
    """The name of a header or a variable may be a member, an attribute or an item before its value."""
    assert expected == Redactor().redact(value)


def test_a_text_that_claims_to_be_an_image() -> None:
    """Media begin as media do; all else in a data URL is searched."""
    image = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGP8z4APMOGVHbbSDAwASjoBD3wkPyMAAAAASUVORK5CYII="
    video = "data:video/mp4;base64," + base64.b64encode(b"\0\0\0\x18ftypmp42").decode()
    sound = "data:audio/pcm16;base64," + base64.b64encode(b"\0\0\1\0\xff\xfe" * 200).decode()
    assert [image, video, sound] == Redactor().redact([image, video, sound])
    long = "data:image/png;base64," + base64.b64encode(f"a line of text\n{KEYS[0][0]}\n".encode() * 200).decode()
    assert "[image/png]" == Redactor().text(long)
    for text in (
        f"data:image/png;base64,{KEYS[0][0]}",
        f"data:image/png;base64, the key {KEYS[0][0]} A",
        "data:audio/wav;base64,cGFzc3dvcmQ9YWJjZA==",
    ):
        assert Redactor().text(text) in ("[image/png]", "[audio/wav]")


@given(st.text("ab ", max_size=60))
def test_windows(text: str) -> None:
    """The matches are those of one search, and no search passes over more than a window and what follows it."""
    pattern, ranges = re.compile(r"(?<!a)b+|a{2,20} "), []

    class Recorded:
        match = pattern.match

        @staticmethod
        def finditer(text: str, start: int, end: int) -> Iterator[re.Match[str]]:
            ranges.append(end - start)
            return pattern.finditer(text, start, end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "WINDOW", 5)
        patch.setattr(redact, "AHEAD", 22)
        assert [match.span() for match in pattern.finditer(text)] == [match.span() for match in redact._matches(Recorded, text)]  # type: ignore[arg-type]
    assert max(ranges, default=0) <= 27


def test_a_long_text_is_searched_in_windows() -> None:
    """The parts of a long text are searched one after the other, and a match at the limit of two is found whole."""
    texts: list[str] = []
    for limit in (redact.WINDOW, redact.WINDOW + redact.AHEAD):
        for before in (limit - 40, limit - 1, limit):
            texts += [" " * before + "password=hunter2hunter2 " + "b" * 50_000, " " * before + f"{KEYS[0][0]} ok {KEYS[1][0]} x"]
    texts += ["-----BEGIN PRIVATE KEY-----" + "A" * 19_000 + "-----END PRIVATE KEY----- sk-" + "a" * 30_000 + " x"]
    for text in texts:
        found = Redactor().text(text)
        assert "hunter2" not in found
        assert KEYS[0][0] not in found
        assert KEYS[1][0] not in found
        assert "AAAA" not in found
        assert "aaaa" not in found
        assert text[-1] == found[-1]


def test_a_long_text_with_an_escape_takes_little_memory() -> None:
    """A few times its size, whatever the number of its characters: the place of each of them is not kept."""
    text = "a b " * 25_000 + "\\u0041"
    tracemalloc.start()
    try:
        assert text == Redactor().text(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(text)


@given(st.lists(st.text("ab", min_size=8, max_size=12), min_size=1, max_size=60))
def test_known_secrets_are_found_by_their_starts(secrets: list[str]) -> None:
    """Each known secret is removed, also if others have the same start."""
    redactor = Redactor(secrets=secrets)
    assert ["[key"] * len(secrets) == [redactor.text(secret)[:4] for secret in secrets]


def test_hostile_values() -> None:
    """A value that nests deeply is cut, and lone surrogates are replaced."""
    deep: object = "x"
    for _ in range(500):
        deep = [deep]
    assert "x" not in repr(Redactor().redact(deep))
    assert "a?" == Redactor().text("a\ud800")


def test_the_number_of_learned_secrets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many, a secret is still removed where it is recognised."""
    monkeypatch.setattr(redact, "MOST_LEARNED", 1)
    redactor = Redactor()
    assert ["password=[key 1]", "password=[key 2]", "[key 1] secondsecret"] == [
        redactor.text(text) for text in ("password=firstsecret", "password=secondsecret", "firstsecret secondsecret")
    ]


def test_options() -> None:
    """Words are kinds, also without the plural and in capitals, all else is a pattern, and an invalid one is named."""
    choice = redact.parse(["emails, ips", "x+", "", "Host,PATHS"])
    assert (frozenset({"emails", "ips", "hosts", "paths"}), ["x+"]) == (choice.kinds, [pattern.pattern for pattern in choice.patterns])
    with pytest.raises(redact.BadPattern, match=r"'\(' is none of emails, ips, hosts, paths and no regular expression"):
        redact.parse(["("])


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("emals", "emails"),
        ("E-mails", "emails"),
        ("mail", "emails"),
        ("Hots", "hosts"),
        ("pahts", "paths"),
        ("(emals)", ""),
        ("caller", ""),
    ],
)
def test_a_misspelled_kind(word: str, kind: str) -> None:
    """A word that is similar to a kind is no pattern. In parentheses it is one."""
    if kind:
        with pytest.raises(redact.BadPattern, match=rf"^'{word}' is none of .*: did you mean {kind}\? .* \({word}\)$"):
            redact.parse([word])
    else:
        assert [word] == [pattern.pattern for pattern in redact.parse([word]).patterns]


def test_fifty_are_planted() -> None:
    """The list has at least fifty different ones."""
    assert len({secret for secret, _ in PLANTED}) >= 50
