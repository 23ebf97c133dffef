"""The command `azure-openai-proxy` and its subcommands.

It may import everything but `addon`, `gateway` and `mitmproxy_patches`. `client_env`, `doctor` and `java_truststore` run beside a client
and need no mitmproxy, nor do `usage` and `keys`, so importing this subpackage loads nothing.
`__all__` lists the modules that others may import.
"""

__all__ = ["command", "launcher"]
