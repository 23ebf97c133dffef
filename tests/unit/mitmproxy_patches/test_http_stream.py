"""What is left of mitmproxy's layers when a message or a connection ends at an unusual moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.options import Options
from mitmproxy.proxy.commands import CloseConnection
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError

from azure_openai_proxy.mitmproxy_patches.http_stream import ClientTLS, Stream

if TYPE_CHECKING:
    from azure_openai_proxy.mitmproxy_patches.interface import HttpPolicy


@pytest.fixture
def context() -> Context:
    """That of a client that is connected."""
    options = Options()
    Proxyserver().load(options)  # its options
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0, state=ConnectionState.OPEN)
    return Context(client, options)


def test_a_failure_after_the_whole_response(context: Context) -> None:
    """Nothing is added to the response; an HTTP/2 upstream may reset a stream that it has answered before the end of the request."""
    stream = Stream(context, 1, cast("HttpPolicy", None))
    stream.server_state = stream.state_done
    assert [] == list(stream.tell(ResponseProtocolError(1, "The stream was reset.", ErrorCode.GENERIC_SERVER_ERROR)))


def test_a_connection_that_is_closed_before_its_handshake(context: Context) -> None:
    """It is closed without an alert: there is no TLS yet."""
    HttpLayer(context, HTTPMode.regular)  # what is around the TLS
    close = CloseConnection(context.client)
    assert [close] == list(ClientTLS(context).send_close(close))
