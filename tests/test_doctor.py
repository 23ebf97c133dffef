"""What the doctor says; what it finds is seen end to end."""

from urllib.parse import urlsplit

import pytest

from azure_openai_proxy import doctor
from azure_openai_proxy.doctor import Finding, Setup


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
    answers = iter([(200, "ok\n"), (503, "stopping\n")])
    monkeypatch.setattr(doctor, "_ask", lambda *_, **__: next(answers))
    found = doctor._is_the_api(Setup("http://localhost/v1", None, None, ""), urlsplit("http://localhost/v1"))
    assert (False, "the proxy is not ready: stopping") == (found.ok, found.what)


def test_no_answer_is_status_0() -> None:
    """A connection that fails is a finding, not a traceback."""
    setup = Setup("http://127.0.0.1:9/v1", None, None, "")
    assert 0 == doctor._ask(setup, urlsplit(setup.base), "GET", "/models")[0]
