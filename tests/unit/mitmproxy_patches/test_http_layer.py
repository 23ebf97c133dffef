"""The layers of a client connection. test_http_stream.py and test_upstream_leg.py send requests through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.proxy.commands import CloseConnection
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

from azure_openai_proxy.mitmproxy_patches.http_layer import ClientTLS

if TYPE_CHECKING:
    from mitmproxy.proxy.context import Context


def test_a_connection_that_is_closed_before_its_handshake(context: Context) -> None:
    """It is closed without an alert: there is no TLS yet."""
    HttpLayer(context, HTTPMode.regular)  # the layer around TLS
    close = CloseConnection(context.client)
    assert [close] == list(ClientTLS(context).send_close(close))
