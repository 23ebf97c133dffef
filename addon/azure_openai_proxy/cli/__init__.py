"""The command `azure-openai-proxy`: the launcher and the subcommands for the client's machine.

This module imports nothing, because `client_env`, `doctor` and `java_truststore` also run without mitmproxy.
"""
