"""The layers of a client connection. test_http_stream.py and test_upstream_leg.py send requests through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.proxy.commands import CloseConnection, SendData
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

from azure_openai_proxy.mitmproxy_patches import http_layer
from azure_openai_proxy.mitmproxy_patches.http_layer import ClientTLS

if TYPE_CHECKING:
    import pytest
    from mitmproxy.proxy.context import Context


def test_a_connection_that_is_closed_before_its_handshake(context: Context) -> None:
    """It is closed without an alert: there is no TLS yet."""
    HttpLayer(context, HTTPMode.regular)  # the layer around TLS
    close = CloseConnection(context.client)
    assert [close] == list(ClientTLS(context).send_close(close))


def test_data_for_a_client_with_tls(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is encrypted and sent in one piece. A client that has closed TLS gets nothing."""
    HttpLayer(context, HTTPMode.regular)  # the layer around TLS
    layer = ClientTLS(context)
    monkeypatch.setattr(http_layer, "encrypted", lambda _, data: b"sealed " + data if data else b"")
    (send,) = layer.send_data(b"abc")
    assert isinstance(send, SendData)
    assert (context.client, b"sealed abc") == (send.connection, send.data)
    assert [] == list(layer.send_data(b""))
