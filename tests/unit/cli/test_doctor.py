"""The texts of the doctor. The end-to-end tests cover its findings."""

from urllib.parse import urlsplit

import pytest

from azure_openai_proxy.cli import doctor
from azure_openai_proxy.cli.doctor import Finding, Setup


def test_a_finding_is_a_line_and_its_remedy() -> None:
    """A finding is printed as one line, and its remedy as a second line."""
    assert "ok    fine" == str(Finding(ok=True, what="fine"))
    assert "FAIL  bad\n      → mend it" == str(Finding(ok=False, what="bad", remedy="mend it"))


def test_unknown_errors_refer_to_azures_message() -> None:
    """An error that is not in the table refers to Azure's message."""
    assert "the message from Azure" in doctor._remedy(418, "")


def test_a_setup_does_not_show_its_key() -> None:
    """The repr of a setup, as in a traceback, does not contain the key."""
    assert "secret" not in repr(Setup("http://localhost/v1", None, None, "secret"))


def test_a_proxy_that_stops_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is shutting down is reported as not ready."""
    answers = iter([(200, "ok\n", True), (503, "stopping\n", True)])
    monkeypatch.setattr(doctor, "_get", lambda *_: next(answers))
    found = doctor._is_the_api(Setup("http://localhost/v1", None, None, ""), urlsplit("http://localhost/v1"))
    assert (False, "the proxy is not ready: stopping") == (found.ok, found.what)


@pytest.mark.parametrize("status, tried", [(200, ["a-401", "b"]), (404, ["a-401", "b"]), (401, ["a-401"])])
def test_a_refused_key_ends_the_models(status: int, tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is refused for one model is refused for the others. A number in a name means nothing."""
    for step in ("_reaches", "_trusts", "_is_the_api"):
        monkeypatch.setattr(doctor, step, lambda *_: Finding(ok=True, what=""))
    monkeypatch.setattr(doctor, "_models", lambda *_: (Finding(ok=True, what=""), ["a-401", "b"]))
    monkeypatch.setattr(doctor, "_ask", lambda *_: (status, {"error": {"message": "no"}}))
    found = list(doctor.examine(Setup("http://localhost/v1", None, None, "")))
    assert tried == [finding.what.partition(":")[0] for finding in found[4:]]


@pytest.mark.parametrize(
    ("status", "response", "ok", "what", "chats"),
    [
        (200, {"data": [{"id": "gpt-4o"}]}, True, "1 model: gpt-4o", ["gpt-4o"]),
        (200, {"data": [{"id": "whisper-1"}, {"id": "tts-1"}]}, True, "2 models: whisper-1, tts-1", []),
        (200, {"data": []}, True, "0 models", []),
        (
            401,
            {"error": {"message": "unknown", "code": "invalid_api_key"}},
            False,
            "GET http://h/v1/models returns 401 unknown",
            [],
        ),
    ],
)
def test_the_list_of_models(status: int, response: object, ok: bool, what: str, chats: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only models that may answer a chat are asked for one, and a refused key is not taken for a wrong path."""
    monkeypatch.setattr(doctor, "_ask", lambda *_: (status, response))
    setup = Setup("http://h/v1", None, None, "")
    found, names = doctor._models(setup, urlsplit(setup.base))
    assert (ok, what, chats) == (found.ok, found.what, names)
    assert ok == ("OPENAI_API_KEY" not in found.remedy)


def test_no_model_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list without a model that answers a chat shows nothing about calls."""
    for step in ("_reaches", "_trusts", "_is_the_api"):
        monkeypatch.setattr(doctor, step, lambda *_: Finding(ok=True, what=""))
    monkeypatch.setattr(doctor, "_ask", lambda *_: (200, {"data": []}))
    *_, last = doctor.examine(Setup("http://localhost/v1", None, None, ""))
    assert (False, "name one: --model MODEL") == (last.ok, last.remedy)


def test_no_answer_is_status_0() -> None:
    """A failed connection is status 0 and raises no exception."""
    setup = Setup("http://127.0.0.1:9/v1", None, None, "")
    assert 0 == doctor._ask(setup, urlsplit(setup.base), "GET", "/models")[0]


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://host/", "http:///v1", "http://a b/", "http://h:x/", "http://h/\x1b[2J", "http://a;b/", "http://[::1/"],
)
def test_invalid_urls(url: str) -> None:
    """An invalid URL, or one with control characters, is rejected before a request is sent."""
    with pytest.raises(ValueError):  # noqa: PT011 - ours or urllib's
        doctor.split(url)
    (finding,) = doctor.examine(Setup(url, None, None, "secret"))
    assert not finding.ok
    (finding,) = doctor.examine(Setup("http://h/v1", url or "x", None, "secret"))
    assert "HTTPS_PROXY" in finding.remedy
    assert str(finding).replace("\n      ", "").isprintable()


@pytest.mark.parametrize(
    "url", ["http://localhost:8080/v1", "https://user:word@[::1]:1", "http://b\u00fccher.example", "http://a_b-c.d/x?y"]
)
def test_valid_urls(url: str) -> None:
    """URLs with international host names, IP addresses or a user are accepted."""
    assert doctor.split(url).hostname


def test_a_finding_does_not_control_the_terminal() -> None:
    """Control characters in a response are escaped in the output."""
    assert "FAIL  a\\x1b[2J\\nb\n      → \\udc80" == str(Finding(ok=False, what="a\x1b[2J\nb", remedy="\udc80"))


def test_a_key_that_no_request_can_carry_is_not_shown() -> None:
    """An invalid key is not in the error, although http.client's own message contains it."""
    setup = Setup("http://127.0.0.1:9/v1", None, None, "secret\nkey")
    assert (0, "the key or the base URL has a character that is invalid in HTTP") == doctor._ask(
        setup, urlsplit(setup.base), "GET", "/models"
    )
