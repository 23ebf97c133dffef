"""The target of a request before mitmproxy modifies it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.proxy import mode_specs
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg import request_target
from azure_openai_proxy.client_leg.interface import ABSOLUTE_FORM, CLIENT_HOST

HOSTS = st.sampled_from(["localhost", "127.0.0.1", "[::1]", "münchen.example", "a b", "", "x" * 300, "api.openai.com"])
PORTS = st.sampled_from(["", ":443", ":0", ":99999", ":x"])


def received(method: str = "POST", version: str = "HTTP/1.1", *, authority: str = "", host: str | None = None) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request = http.Request.make(method, "http://localhost/")
    flow.request.headers.clear()
    flow.request.http_version, flow.request.data.authority = version, authority.encode()
    flow.request.data.host, flow.request.data.port, flow.request.data.scheme = authority, 0, b"http" if authority else b""
    if host is not None:
        flow.request.headers["host"] = host
    return flow


@given(host=HOSTS | st.text(st.characters(exclude_categories=["Cs"])), port=PORTS, tls=st.booleans())
def test_the_destination(host: str, port: str, tls: bool) -> None:
    """It is the one that mitmproxy reads in the Host, the second time too; a Host that it would refuse is left to it."""
    client = tflow.tclient_conn()
    client.tls = tls
    for _ in range(2):
        flow = received(host=host + port)
        request_target.record(flow, client, transparent=False)
        try:
            name, number = url.parse_authority(flow.request.host_header or "", check=True)
        except ValueError:
            assert not flow.request.host
        else:
            if flow.request.host:  # a long one is left to mitmproxy
                expected = (name, (443 if tls else 80) if number is None else number, "https" if tls else "http")
                assert expected == (flow.request.host, flow.request.port, flow.request.scheme)
            else:
                assert len(host + port) > 255


@pytest.mark.parametrize(
    "flow, form",
    [
        (received(host="a"), False),
        (received(authority="a", host="a"), True),
        (received(version="HTTP/2.0", authority="a"), True),
        (received("CONNECT", authority="a"), None),
    ],
)
def test_the_form(flow: http.HTTPFlow, form: bool | None) -> None:
    """Whether the target is in absolute form; CONNECT has another one."""
    request_target.record(flow, tflow.tclient_conn(), transparent=False)
    assert form is flow.metadata.get(ABSOLUTE_FORM)


def test_a_client_without_host() -> None:
    """HTTP/1.0 allows it: the Host is the address to which the client has connected."""
    flow, client = received(version="HTTP/1.0"), tflow.tclient_conn()
    client.sockname = ("::1", 8080, 0, 0)  # type: ignore[assignment] # of IPv6
    request_target.record(flow, client, transparent=False)
    assert ("[::1]:8080", "::1", 8080) == (flow.request.headers["host"], flow.request.host, flow.request.port)


@pytest.mark.parametrize("mode, recorded", [("reverse:http://localhost", "a"), ("transparent", None)])
def test_the_host_that_is_replaced(mode: str, recorded: str | None) -> None:
    """In reverse mode, mitmproxy replaces the Host; the client's own is kept."""
    flow, client = received(host="a"), tflow.tclient_conn()
    client.proxy_mode = mode_specs.ProxyMode.parse(mode)
    request_target.record(flow, client, transparent=True)
    assert recorded == flow.metadata.get(CLIENT_HOST)
    assert ABSOLUTE_FORM not in flow.metadata


@given(host=HOSTS | st.text(), port=PORTS, check=st.booleans(), raw=st.booleans())
def test_an_authority(host: str, port: str, check: bool, raw: bool) -> None:
    """It is parsed, or refused, as by mitmproxy, the second time too."""

    def parsed(parse: Any) -> object:
        authority = (host + port).encode("utf-8", "surrogateescape") if raw else host + port
        try:
            return parse(authority, check=check)
        except ValueError:
            return ValueError

    assert parsed(url.parse_authority) == parsed(request_target.parse_authority) == parsed(request_target.parse_authority)


def test_a_long_authority_is_not_remembered() -> None:
    """A client's text takes a bounded part of the memory."""
    before = request_target._remembered.cache_info().currsize
    assert ("x" * 200 + "." + "y" * 60, None) == request_target.parse_authority("x" * 200 + "." + "y" * 60, check=False)
    assert before == request_target._remembered.cache_info().currsize
