"""The script for mitmproxy: `mitmdump -s addon/azure_openai.py`. The addon itself is the package in the same directory."""

import gc
import sys

# mitmproxy watches only this file: touching it reloads the whole package.
for name in [name for name in sys.modules if name.partition(".")[0] == "azure_openai_proxy"]:
    del sys.modules[name]
    gc.unfreeze()  # the old package, which the addon has excluded from collections

from azure_openai_proxy.addon import AzureOpenAIProxy  # noqa: E402 - after removing the old modules

addons = [AzureOpenAIProxy()]
