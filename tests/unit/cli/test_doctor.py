"""What the doctor says; what it finds is seen end to end."""

from urllib.parse import urlsplit

import pytest

from azure_openai_proxy.cli import doctor
from azure_openai_proxy.cli.doctor import Finding, Setup


def test_a_finding_is_a_line_and_its_remedy() -> None:
    """What, and what to do."""
    assert "ok    fine" == str(Finding(ok=True, what="fine"))
    assert "FAIL  bad\n      → mend it" == str(Finding(ok=False, what="bad", remedy="mend it"))


def test_what_nobody_knows_is_in_the_message() -> None:
    """Azure has more errors than anybody lists."""
    assert "the message says" in doctor._remedy(418, "")


def test_a_setup_does_not_show_its_key() -> None:
    """A traceback would."""
    assert "secret" not in repr(Setup("http://localhost/v1", None, None, "secret"))


def test_a_proxy_that_stops_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is alive, and of no use."""
    answers = iter([(200, "ok\n", True), (503, "stopping\n", True)])
    monkeypatch.setattr(doctor, "_asked", lambda *_: next(answers))
    found = doctor._is_the_api(Setup("http://localhost/v1", None, None, ""), urlsplit("http://localhost/v1"))
    assert (False, "the proxy is not ready: stopping") == (found.ok, found.what)


def test_no_answer_is_status_0() -> None:
    """A connection that fails is a finding, not a traceback."""
    setup = Setup("http://127.0.0.1:9/v1", None, None, "")
    assert 0 == doctor._ask(setup, urlsplit(setup.base), "GET", "/models")[0]


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://host/", "http:///v1", "http://a b/", "http://h:x/", "http://h/\x1b[2J", "http://a;b/", "http://[::1/"],
)
def test_what_is_no_url(url: str) -> None:
    """It is refused before anything is asked; so is one that would control a terminal."""
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
def test_what_is_one(url: str) -> None:
    """Host names in any language, addresses, a user."""
    assert doctor.split(url).hostname


def test_a_finding_does_not_control_the_terminal() -> None:
    """What the other side answers is shown, and not obeyed."""
    assert "FAIL  a\\x1b[2J\\nb\n      → \\udc80" == str(Finding(ok=False, what="a\x1b[2J\nb", remedy="\udc80"))


def test_a_key_that_no_request_can_carry_is_not_shown() -> None:
    """The library's own message repeats it."""
    setup = Setup("http://127.0.0.1:9/v1", None, None, "secret\nkey")
    assert (0, "the key or the base URL holds a character that no request can carry") == doctor._ask(
        setup, urlsplit(setup.base), "GET", "/models"
    )
