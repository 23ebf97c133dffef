"""The upstream leg: pooled connections to Azure, and one asyncio task per request that sends, retries and streams.

It implements sockets, TLS and HTTP/1.1; a `Policy` chooses the request and the destination of each attempt. It is independent of
mitmproxy's layers: the adapter that passes requests in and responses out is in `mitmproxy_patches`. It may import `routing` and the layers
below it.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["connect", "interface", "pool", "request", "request_body", "shortage", "tls"]
