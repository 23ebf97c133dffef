"""What mitmproxy loads: `mitmdump -s addon/azure_openai.py`. The addon itself is the package beside this file."""

import sys

# mitmproxy watches only this file: touching it loads the whole package anew.
for name in [name for name in sys.modules if name.partition(".")[0] == "azure_openai_proxy"]:
    del sys.modules[name]

from azure_openai_proxy.addon import AzureOpenAIProxy  # noqa: E402 - the old modules must be gone first

addons = [AzureOpenAIProxy()]
