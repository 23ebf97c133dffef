"""The upstream leg: pooled connections to Azure, and one asyncio task per request that sends, retries and streams.

It knows sockets, TLS and HTTP/1.1, and asks its `Policy` what to send where. It does not know mitmproxy's layers: the seam that hands it
requests and takes its responses is in `mitmproxy_patches`. It may import `routing` and the layers below it.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["connect", "pool", "request", "tls"]
