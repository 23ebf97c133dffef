"""Which requests of web pages are refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from mitmproxy import http
from mitmproxy.proxy import mode_specs
from mitmproxy.test import tflow

from azure_openai_proxy.config import origins
from azure_openai_proxy.gateway.origins import Gate

if TYPE_CHECKING:
    from azure_openai_proxy.config.origins import Origins

HOSTS = frozenset({"api.openai.com", "gateway.example.com"})
LOCAL = origins.allowed((), HOSTS, keyed=True)
FOREIGN = "https://evil.example"


def flow(mode: str = "regular", to: str | None = None, here: str = "127.0.0.1", **headers: str) -> http.HTTPFlow:
    flow = tflow.tflow(req=http.Request.make("GET", "http://x/v1/models"))
    flow.request.headers.update({name.replace("_", "-"): text for name, text in headers.items()})
    flow.client_conn.proxy_mode = mode_specs.ProxyMode.parse(mode)
    flow.client_conn.sockname = (here, 8080)
    flow.server_conn.address = (to, 443) if to else None
    return flow


def refused(asked: http.HTTPFlow, rule: Origins = LOCAL, authority: str = "localhost:8080", *, absolute: bool = False) -> str | None:
    refusal = Gate().refusal(asked, rule, authority=authority, absolute=absolute)
    assert refusal is None or refusal.status == 403
    return refusal.code if refusal else None


@pytest.mark.parametrize(
    "asked, authority, code",
    [
        (flow(), "localhost:8080", None),
        (flow(origin="http://localhost:3000", sec_fetch_site="cross-site"), "localhost:8080", None),
        (flow(origin=FOREIGN), "localhost:8080", "origin_not_allowed"),
        (flow(origin=""), "localhost:8080", "origin_not_allowed"),
        (flow(origin="null", sec_fetch_site="same-origin"), "localhost:8080", "origin_not_allowed"),
        (flow(sec_fetch_site="cross-site"), "localhost:8080", "origin_not_allowed"),
        (flow(sec_fetch_site="none"), "localhost:8080", None),
        (flow(), "evil.example:8080", "host_not_allowed"),
        (flow(here="::1"), "evil.example", "host_not_allowed"),
        (flow(here="::ffff:127.0.0.1"), "evil.example", "host_not_allowed"),
        (flow(here="127.8.8.8"), "evil.example", "host_not_allowed"),
        (flow(here="192.168.1.5"), "evil.example", None),
        (flow(here="192.168.1.5", origin="http://evil.example"), "evil.example", "origin_not_allowed"),
        (flow(to="api.openai.com"), "evil.example", None),
        (flow("reverse:https://api.openai.com", "api.openai.com"), "evil.example", "host_not_allowed"),
    ],
)
def test_who_is_refused(asked: http.HTTPFlow, authority: str, code: str | None) -> None:
    """A foreign page, and a foreign name for requests that come straight to a loopback address."""
    assert code == refused(asked, authority=authority)
    assert refused(asked, origins.EVERY, authority) is None


def test_a_whole_url_has_no_name_of_the_proxy() -> None:
    """A client that uses the proxy as its proxy names the host that it means."""
    assert refused(flow(), authority="evil.example", absolute=True) is None
    assert "origin_not_allowed" == refused(flow(origin=FOREIGN), absolute=True)


def test_each_page_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """With no control character of the client's, and not without end."""
    gate = Gate()
    with caplog.at_level(logging.WARNING):
        for origin in (FOREIGN, FOREIGN, "\x1b[2J\n"):
            gate.refusal(flow(origin=origin), LOCAL, authority="localhost", absolute=False)
        assert 2 == len(caplog.messages)
        assert "azure_openai_allowed_origins" in caplog.messages[0]
        assert caplog.messages[1].isprintable()
        for number in range(200):
            assert gate.refusal(flow(origin=f"https://{number}.example"), LOCAL, authority="localhost", absolute=False)
    assert 100 == len(caplog.messages)
