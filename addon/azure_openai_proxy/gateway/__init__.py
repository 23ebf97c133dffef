"""Processing of a request from arrival to response: which requests the proxy handles, the registry of running exchanges, shutdown.

It may import everything but `addon` and `cli`; `registry`, `relay_guard` and `shutdown` use `mitmproxy_patches`.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["exchange", "ingress", "log_records", "registry", "relay_guard", "response_from_azure", "shutdown"]
