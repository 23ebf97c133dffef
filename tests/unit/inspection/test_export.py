"""Exported requests run as printed and send the same request as the proxy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import http

from azure_openai_proxy.inspection import export as exports
from azure_openai_proxy.inspection.export import VARIABLE
from support.examples import examples
from support.processes import PATIENCE
from support.snippets import Ran, Snippets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Simulator

    type Run = Callable[..., Ran]

CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": 'it\'s "$HOME" é\n\\'}]}).encode()
DATED = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"


def request(url: str, path: str, body: bytes = CHAT, method: str = "POST", **headers: str) -> http.Request:
    made = http.Request.make(method, url + path, body)
    made.headers.update({"content-type": "application/json", "api-key": "[key]", "x-more": 'a "$quoted" one', **headers})
    return made


ENV = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def snippets() -> Iterator[Snippets]:
    with Snippets(ENV) as snippets:
        yield snippets


@pytest.fixture
def run(snippets: Snippets, tmp_path: Path) -> Run:
    """Run an export in an empty folder, with the key in the variable; return its output."""

    def run(format: str, text: str, key: str, shell: str = "bash") -> Ran:
        env = {VARIABLE: key} if key else {}
        if format != "curl":
            return snippets.run(text, env, tmp_path)
        ran = subprocess.run(
            [shell], input=text, env=ENV | env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.mark.parametrize("included", [False, True], ids=["variable", "key"])
@pytest.mark.parametrize(
    ("path", "body"),
    [(DATED, CHAT), ("/openai/v1/chat/completions", CHAT), (DATED, CHAT.replace(b"it", b"x" * 120_000)), ("/openai/v1/files?limit=1", b"")],
    ids=["dated", "v1", "long", "get"],
)
@pytest.mark.parametrize("format", ["curl", "httpx", "openai"])
@pytest.mark.slow
def test_it_runs(format: str, path: str, body: bytes, included: bool, azure: Simulator, run: Run) -> None:
    """An export that runs in a shell or in Python, with the key in a variable or in the text, sends Azure the same request."""
    if format == "curl" and not shutil.which("curl"):
        pytest.skip("no curl")
    exported = exports.FORMATS[format](request(azure.http_url, path, body, "POST" if body else "GET"), azure.key if included else "")
    assert included == (azure.key in exported)
    ran = run(format, exported, "" if included else azure.key)
    assert 0 == ran.returncode, ran.stderr
    got = azure.wait_for_request()
    assert (path, 200) == (got.path, got.status)
    assert not body or json.loads(body) == got.json
    assert format == "openai" or body == got.body
    assert format == "openai" or 'a "$quoted" one' == got.header("x-more")


@pytest.mark.parametrize("format", ["curl", "httpx"])
@pytest.mark.slow
def test_a_body_of_any_bytes_runs(format: str, azure: Simulator, run: Run) -> None:
    """The export of a form with a file sends the same bytes."""
    body = b"--X\r\n\x00\xff'\"\r\n--X--\r\n"
    exported = exports.FORMATS[format](
        request(azure.http_url, DATED, body, **{"content-type": "multipart/form-data; boundary=X", "accept-encoding": "gzip"}), ""
    )
    assert 0 == run(format, exported, azure.key).returncode
    assert body == azure.wait_for_request().body


def test_a_bearer_stays_one() -> None:
    """An Entra token stays a bearer token, and the SDK receives it as one."""
    made = request("https://r.openai.azure.com", DATED, authorization="Bearer [key]")
    del made.headers["api-key"]
    assert f'--header "authorization: Bearer ${VARIABLE}"' in exports.curl(made)
    assert f"'Bearer ' + os.environ[\"{VARIABLE}\"]" in exports.httpx(made)
    assert f'azure_ad_token=os.environ["{VARIABLE}"]' in exports.openai(made)


def test_the_sdk_is_asked_as_a_person_would_ask_it() -> None:
    """The export uses the SDK's method for the operation, iterates over streams, and keeps the query and an api-version on v1."""
    streaming = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
    v1 = exports.openai(request("https://r.openai.azure.com", "/apim/openai/v1/responses?api-version=preview&a=b", streaming))
    assert "client.responses.create(**{'model': 'm', 'input': 'hi', 'stream': True}, extra_query={'a': 'b'})" in v1
    assert "base_url='https://r.openai.azure.com/apim/openai/v1'" in v1
    assert "default_query={'api-version': 'preview'}" in v1
    assert "for chunk in answer:" in v1


@pytest.mark.parametrize(("path", "body"), [("/nothing", CHAT), (DATED, b"\x00")], ids=["another path", "no JSON"])
def test_requests_that_the_sdk_cannot_send_are_rejected(path: str, body: bytes) -> None:
    """A request that the SDK cannot send is rejected with a reason and an alternative."""
    with pytest.raises(ValueError, match=r"not a path of Azure OpenAI|not JSON"):
        exports.openai(request("https://r.openai.azure.com", path, body))


# Text from clients that would be executed if it were not quoted

PAYLOADS = {
    "backtick": "`touch pwned`[key]",
    "substitution": "$(touch pwned)[key]",
    "single quote": "';touch pwned;'",
    "double quote": '";touch pwned;"',
    "quote and substitution": "'\"$(touch pwned)\"'",
    "operators": "|touch pwned;&touch pwned&",
    "history": "!touch pwned",
    "backslash": "\\';touch pwned;\\",
    "python": '\'+__import__("os").system("touch pwned")+\'',
    "python, the other quote": '"+__import__("os").system("touch pwned")+"',
    "python, a keyword": 'x", **__import__("os").system("touch pwned") or {}, y="',
    "heredoc": "END",
    "file": "@/etc/passwd",
    "glob": "[1-3]{a,b}",
    "not ASCII": "é`touch pwned`",
    "right to left": "\u202e`touch pwned`",
}
IN_A_PATH = {name: text.replace(" ", "${IFS}") for name, text in PAYLOADS.items() if text.isascii()}
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "a header": lambda text: {"headers": {"x-more": text}},
    "the path": lambda text: {"path": f"/openai/v1/files/{text}"},
    "the api-version": lambda text: {"path": DATED.partition("?")[0] + f"?api-version={text}"},
    "the query": lambda text: {"path": f"{DATED}&a={text}"},
    "a query's name": lambda text: {"path": f"{DATED}&{text}=a"},
    "the deployment": lambda text: {"path": DATED.replace("gpt-4o", text)},
    "the prefix": lambda text: {"path": f"/{text}{DATED}"},
    "a text of the body": lambda text: {"body": json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()},
    "a name of the body": lambda text: {"body": json.dumps({"model": "m", "messages": [], text: 1}, ensure_ascii=False).encode()},
    "a body of its own": lambda text: {"body": text.encode()},
}


def hostile(url: str, place: str, text: str) -> http.Request:
    changed = PLACES[place](text)
    made = request(url, "/x", changed.get("body", CHAT))
    made.path = changed.get("path", DATED)
    made.headers.update(changed.get("headers", {}))
    return made


def exported(format: str, made: http.Request) -> tuple[str, str]:
    """The exported text and "", or "" and the error."""
    try:
        return exports.FORMATS[format](made, ""), ""
    except ValueError as error:
        return "", str(error)


def cases() -> list[tuple[str, str]]:
    return [
        (place, name)
        for place in PLACES
        for name in (PAYLOADS if place == "a header" or "body" in place else IN_A_PATH)
        if (place, name) != ("a header", "right to left")
    ]


class Recorded(dict[str, Any]):
    """The arguments of a call to a fake httpx or openai."""

    def modules(self) -> dict[str, types.ModuleType]:
        def sent(name: str) -> Callable[..., Any]:
            return lambda *args, **kwargs: types.SimpleNamespace(text="", called=self.update({"call": name, "args": args, **kwargs}))

        class Client:
            def __init__(_self, **kwargs: Any) -> None:  # noqa: N805 - the other self is used
                self["client"] = kwargs

            def __getattr__(self, name: str) -> Any:
                return Methods(name)

        class Methods:
            def __init__(self, name: str) -> None:
                self._name = name

            def __getattr__(self, name: str) -> Methods:
                return Methods(f"{self._name}.{name}")

            def __call__(self, *args: Any, **kwargs: Any) -> tuple[()]:
                sent(self._name)(*args, **kwargs)
                return ()

        httpx, openai = types.ModuleType("httpx"), types.ModuleType("openai")
        vars(httpx).update(request=sent("request"))
        vars(openai).update(OpenAI=Client, AzureOpenAI=Client)
        return {"httpx": httpx, "openai": openai}


def python(text: str) -> Recorded:
    """Run the code in this process with fakes for the two libraries, because a thousand processes would take an hour."""
    recorded = Recorded()
    before = {name: sys.modules.get(name) for name in ("httpx", "openai")}
    sys.modules.update(recorded.modules())
    os.environ[VARIABLE] = "k-0123"
    try:
        exec(compile(text, "export", "exec"), {"print": lambda *_: None})  # noqa: S102 - the subject of the test
    finally:
        del os.environ[VARIABLE]
        for name, module in before.items():
            sys.modules.pop(name)
            if module:
                sys.modules[name] = module
    return recorded


def shell(text: str, folder: Path, shell: str = "sh") -> tuple[list[str], bytes]:
    """Run the command in `folder` with a fake `curl` that reports its arguments and its standard input."""
    (folder / "bin").mkdir(exist_ok=True)
    stub = folder / "bin" / "curl"
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\ncat >bin/stdin\n")
    stub.chmod(0o755)
    env = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "LANG": "C.UTF-8", VARIABLE: "k-0123"}
    script = folder / "export.sh"
    script.write_bytes(text.encode())
    ran = subprocess.run([shell, script], env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    return ran.stdout.decode("utf-8", "surrogateescape").split("\0"), (folder / "bin" / "stdin").read_bytes()


def check_python(format: str, made: http.Request, text: str) -> None:
    called = python(text)
    if format == "httpx":
        headers = {name: value if isinstance(value, bytes) else value.encode() for name, value in called["headers"]}
        assert (made.method, made.url) == called["args"]
        assert made.headers["x-more"].encode("utf-8", "surrogateescape") == headers["x-more"]
        assert b"k-0123" == headers["api-key"]
        assert (made.raw_content or None) == called.get("content")
    else:
        assert "k-0123" == called["client"]["api_key"]


def check_shell(made: http.Request, called: tuple[list[str], bytes]) -> None:
    arguments, stdin = called
    assert made.method == arguments[arguments.index("--request") + 1]
    assert made.url in arguments
    more = made.headers["x-more"]
    assert (f"x-more: {more}" if more.strip() else "x-more;") in arguments
    assert "api-key: k-0123" in arguments
    if not made.raw_content:
        assert "--data-binary" not in arguments
        return
    body = arguments[arguments.index("--data-binary") + 1]
    assert made.raw_content == (stdin if body == "@-" else body.encode())


@pytest.mark.parametrize(("place", "name"), cases())
def test_nothing_of_a_client_is_run(place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in any field that a client controls is not executed when the export is run."""
    monkeypatch.chdir(tmp_path)
    made = hostile("https://r.openai.azure.com", place, (IN_A_PATH if "path" in PLACES[place]("") else PAYLOADS)[name])
    check_shell(made, shell(exports.curl(made), tmp_path, "bash" if len(name) % 2 else "sh"))
    check_python("httpx", made, exports.httpx(made))
    text, reason = exported("openai", made)
    if text:
        check_python("openai", made, text)
    assert text or re.search("not JSON|not a path of Azure OpenAI", reason)
    assert not (tmp_path / "pwned").exists()


_TEXTS = st.text(st.sampled_from(" '\"`$()[]{}\\;|&<>!#~*?=%@\n\t\r\x1b\x00abcE[key]é\u202e\u2028\x9b\ud800"), max_size=12)


@settings(max_examples=examples(150), deadline=None)
@given(place=st.sampled_from(list(PLACES)), text=_TEXTS, method=st.sampled_from(["POST", "GET", "PATCH"]))
def test_any_text_is_exported_safely(place: str, text: str, method: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any text in any field is sent unchanged or rejected with a reason, and the export has no control characters."""
    folder = tmp_path_factory.getbasetemp() / "exported"
    folder.mkdir(exist_ok=True)
    try:
        made = hostile("https://r.openai.azure.com", place, text)
    except UnicodeEncodeError:  # a lone surrogate, which no request can contain
        return
    made.method = method
    for format in exports.FORMATS:
        printed, reason = exported(format, made)
        if not printed:
            assert re.search("characters|not JSON|not a path of Azure OpenAI", reason)
            continue
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ud800]", printed)
        if format == "curl":
            check_shell(made, shell(printed, folder))
        else:
            check_python(format, made, printed)


@pytest.mark.parametrize("format", ["curl", "httpx", "openai"])
@pytest.mark.slow
def test_the_attacks_run_for_real(format: str, azure: Simulator, run: Run, tmp_path: Path) -> None:
    """With the real curl, httpx and openai one request arrives and no injected code runs."""
    if format == "curl" and not shutil.which("curl"):
        pytest.skip("no curl")
    text = "".join(PAYLOADS[name] for name in ("backtick", "substitution", "quote and substitution", "python", "operators"))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "metadata": {text: text}}).encode()
    made = request(azure.http_url, DATED + "&a=" + text.replace(" ", "${IFS}"), body, "POST", **{"x-more": text})
    exported = exports.FORMATS[format](made, "")
    run(format, exported, azure.key, "sh")
    got = azure.wait_for_request()
    sent = json.loads(got.body)
    assert [{"role": "user", "content": text}] == sent["messages"]
    assert {text: text} == sent["metadata"]
    assert format == "openai" or text == got.header("x-more")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["curl", "httpx", "openai"])
@pytest.mark.parametrize("method", ["P`touch pwned`", "$(touch pwned)", "POST --output x", "x';'", "__class__", "", "-X"])
def test_a_method_that_is_no_word_is_not_exported(method: str, format: str) -> None:
    """A method that is not a plain word is rejected with a reason."""
    made = request("https://r.openai.azure.com", DATED)
    made.method = method
    with pytest.raises(ValueError, match=r"not a plain word|no such method"):
        exports.FORMATS[format](made, "")


@pytest.mark.parametrize("format", ["curl", "httpx", "openai"])
@pytest.mark.parametrize("path", ["/openai/v1/files/a b", "/openai/v1/files/\x1b[2J", "/openai/v1/files/a\nb", "/openai/v1/files/é"])
def test_a_path_that_no_url_has_is_not_exported(path: str, format: str) -> None:
    """A path with characters that are invalid in a URL, possible over HTTP/2 and in flow files, is rejected."""
    made = request("https://r.openai.azure.com", "/")
    made.path = path
    with pytest.raises(ValueError, match="invalid characters"):
        exports.FORMATS[format](made, "")


@pytest.mark.parametrize("format", ["curl", "httpx"])
@pytest.mark.parametrize("name", ["@/etc/passwd", "x y", "x:y", "", "x\n", "é", "x(y)"])
def test_a_header_s_name_that_is_no_token_is_not_exported(name: str, format: str) -> None:
    """An invalid header name is rejected: curl would read a file for `@name`, and a space or colon would make another header."""
    made = request("https://r.openai.azure.com", DATED)
    made.headers.fields = ((name.encode(), b"1"), *made.headers.fields)
    with pytest.raises(ValueError, match="is not a header name"):
        exports.FORMATS[format](made, "")


def test_a_mask_is_a_key_s_place_in_headers_with_keys_only() -> None:
    """`[key]` is replaced in key headers only, and a client's own scheme before it is quoted."""
    made = request("https://r.openai.azure.com", DATED)
    made.headers.update({"authorization": "`x` [key]", "x-more": "[key]", "x-empty": ""})
    curl, python = exports.curl(made), exports.httpx(made)
    assert "'x-more: [key]'" in curl
    assert "('x-more', '[key]')" in python
    assert "'authorization: `x` '\"$AZURE_OPENAI_API_KEY\"" in curl
    assert "--header 'x-empty;'" in curl  # curl omits `x-empty:`


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE"])
def test_the_sdk_has_no_such_method(method: str) -> None:
    """The SDK export rejects a method that the SDK lacks, while the other formats support every method."""
    made = request("https://r.openai.azure.com", "/openai/v1/files", b"", method)
    with pytest.raises(ValueError, match="no such method"):
        exports.openai(made)
    assert f"--request {made.method} " in exports.curl(made)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "more",
    [{"x": "y" * 120_000}, {"x": json.loads("[" * 300 + "]" * 300)}, {"x": float("inf")}],
    ids=["long", "nested", "infinite"],
)
def test_values_without_a_python_literal_are_exported_as_json(more: dict[str, Any], stream: bool) -> None:
    """A long or deeply nested body, or one with non-finite numbers, is exported as JSON text and yields the same arguments."""
    body = {"model": "m", "messages": [], "stream": stream, **more}
    called = python(exports.openai(request("https://r.openai.azure.com", DATED, json.dumps(body).encode())))
    assert body | {"model": "gpt-4o"} == {name: called[name] for name in body}
    listed = json.dumps(["y" * 120_000]).encode()
    assert [["y" * 120_000]] == [python(exports.openai(request("https://r.openai.azure.com", "/openai/v1/files", listed)))["body"]]
