"""Which connections and requests are ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from mitmproxy import http, tls
from mitmproxy.proxy import mode_specs
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg.interface import ABSOLUTE_FORM
from azure_openai_proxy.gateway import ingress
from support.flows import gateways

if TYPE_CHECKING:
    from mitmproxy.options import Options

HOSTS = frozenset({"api.openai.com"})


def flow_to(
    url: str, *, mode: str = "regular", tunnel: str | None = None, sni: str | None = None, tls: bool = False, host: str | None = None
) -> http.HTTPFlow:
    flow = tflow.tflow(req=http.Request.make("POST", url))
    flow.client_conn.proxy_mode = mode_specs.ProxyMode.parse(mode)
    flow.client_conn.sockname = ("10.0.0.1", 8080)
    flow.client_conn.sni = sni
    flow.client_conn.timestamp_tls_setup = 1.0 if tls else None
    flow.server_conn.address = (tunnel, 443) if tunnel else None
    if host:
        flow.request.headers["host"] = host
    return flow


@pytest.mark.parametrize(
    ("flow", "absolute", "ours"),
    [
        # a gateway, under any name
        (flow_to("http://localhost:8080/v1/models"), False, True),
        (flow_to("http://anything.example/v1/models"), False, True),
        (flow_to("http://anything.example/v1/models", mode="reverse:https://api.openai.com", tunnel="api.openai.com"), False, True),
        # a forward proxy, by host
        (flow_to("http://api.openai.com/v1/models"), True, True),
        (flow_to("http://API.OpenAI.com./v1/models"), True, True),
        (flow_to("http://other.example/v1/models"), True, False),
        # a forward proxy that is asked for itself
        (flow_to("http://localhost:8080/v1/models"), True, True),
        (flow_to("http://10.0.0.1:8080/v1/models"), True, True),
        (flow_to("http://localhost:9000/v1/models"), True, False),
        (flow_to("http://10.0.0.2:8080/v1/models"), True, False),
        # inside a connection to another host
        (flow_to("https://api.openai.com/v1/models", tunnel="api.openai.com", tls=True), False, True),
        (flow_to("https://162.159.140.245/v1/models", tunnel="162.159.140.245", sni="api.openai.com", tls=True), False, True),
        (flow_to("https://other.example/v1/models", tunnel="other.example", sni="other.example", tls=True), False, False),
        (flow_to("https://other.example/v1/models", tunnel="other.example", host="api.openai.com", tls=True), False, False),
        (flow_to("http://162.159.140.245/", mode="transparent", tunnel="162.159.140.245", host="api.openai.com"), False, True),
        (flow_to("http://162.159.140.245/", mode="transparent", tunnel="162.159.140.245", host="other.example"), False, False),
    ],
)
def test_is_ours(flow: http.HTTPFlow, absolute: bool, ours: bool) -> None:
    """By the way it came, and by host."""
    assert ours == ingress.is_ours(flow, HOSTS, absolute=absolute)


@pytest.mark.parametrize(
    ("mode", "destination", "sni", "passes"),
    [
        ("regular", None, "localhost", False),  # the gateway's own TLS
        ("regular", "api.openai.com", "api.openai.com", False),
        ("regular", "api.openai.com", None, False),
        ("socks5", "1.2.3.4", "api.openai.com", False),
        ("regular", "other.example", "other.example", True),
        ("transparent", "1.2.3.4", None, True),
        ("reverse:https://other.example", "other.example", "other.example", False),
    ],
)
def test_passes_through(mode: str, destination: str | None, sni: str | None, passes: bool) -> None:
    """Only connections that may be OpenAI's are decrypted."""
    client = SimpleNamespace(proxy_mode=mode_specs.ProxyMode.parse(mode))
    server = SimpleNamespace(address=(destination, 443) if destination else None)
    hello = SimpleNamespace(context=SimpleNamespace(client=client, server=server), client_hello=SimpleNamespace(sni=sni))
    assert passes == ingress.passes_through(cast("tls.ClientHelloData", hello), HOSTS)


def behind(*, connect: bool, auth: str | None = "user:pass") -> ingress.Upstream:
    flow = flow_to("http://localhost/", mode="upstream:http://proxy.example:3128", tunnel="api.openai.com" if connect else None)
    found = ingress.upstream(flow, cast("Options", SimpleNamespace(upstream_auth=auth)))
    assert found
    return found


def test_only_upstream_mode_has_a_proxy_behind() -> None:
    """Its option is not even read in others."""
    assert ingress.upstream(flow_to("http://localhost/"), cast("Options", SimpleNamespace())) is None


@pytest.mark.parametrize(
    ("url", "connect", "authority", "authorization"),
    [
        ("http://azure.example:9000/v1", False, "azure.example:9000", "Basic dXNlcjpwYXNz"),
        ("https://azure.example/v1", False, "", None),
        ("http://azure.example/v1", True, "", None),
    ],
)
def test_a_plain_request_tells_the_proxy_behind_where_to_go(url: str, connect: bool, authority: str, authorization: str | None) -> None:
    """Through CONNECT, and with TLS, mitmproxy has already sent the target."""
    request = http.Request.make("POST", url)
    behind(connect=connect).prepare(request)
    assert (authority, authorization) == (request.authority, request.headers.get("proxy-authorization"))


def test_a_proxy_behind_without_a_password() -> None:
    """Gets none."""
    request = http.Request.make("POST", "http://azure.example/v1")
    behind(connect=False, auth=None).prepare(request)
    assert "proxy-authorization" not in request.headers


@pytest.mark.parametrize("auth, credentials", [("user:pass", b"Basic dXNlcjpwYXNz"), (None, None)])
def test_a_request_of_ours_knows_the_proxy_behind(auth: str | None, credentials: bytes | None) -> None:
    """Its address, whether it speaks TLS, and its password; in other modes there is none."""
    options = cast("Options", SimpleNamespace(upstream_auth=auth))
    found = ingress.proxy(flow_to("http://localhost/", mode="upstream:https://proxy.example:3128"), options)
    assert ("proxy.example", 3128, True, credentials) == found
    assert ingress.proxy(flow_to("http://localhost/"), options) is None


def test_http2_keeps_its_authority() -> None:
    """It has no other place to say where it goes."""
    request = http.Request.make("POST", "https://azure.example/v1")
    request.http_version, request.authority = "HTTP/2.0", "azure.example"
    behind(connect=False).prepare(request)
    assert "azure.example" == request.authority


@pytest.mark.parametrize(
    "mode, version, scheme, authority, absolute",
    [
        ("regular", "HTTP/1.1", "http", "", True),  # it may be
        ("upstream:http://127.0.0.1:9", "HTTP/1.1", "http", "other.example:80", True),
        ("upstream:http://127.0.0.1:9", "HTTP/1.1", "http", "", False),
        ("reverse:http://127.0.0.1:9", "HTTP/1.1", "http", "", False),
        ("regular", "HTTP/2.0", "http", "other.example", True),
        ("regular", "HTTP/2.0", "https", "localhost", False),
    ],
)
def test_the_form_of_a_target_without_the_patch(mode: str, version: str, scheme: str, authority: str, absolute: bool) -> None:
    """What mitmproxy keeps of it decides; an HTTP/1 request may be one for another host. With the patch it is recorded."""
    flow = gateways()
    flow.client_conn.proxy_mode = mode_specs.ProxyMode.parse(mode)
    flow.request.http_version, flow.request.scheme, flow.request.authority = version, scheme, authority
    assert not ingress.absolute_form(flow, records_form=True)
    assert absolute == ingress.absolute_form(flow, records_form=False)
    flow.metadata[ABSOLUTE_FORM] = False
    assert not ingress.absolute_form(flow, records_form=False)
