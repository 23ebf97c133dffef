"""What mitmproxy loads."""

import gc
import importlib.util
import sys

from azure_openai_proxy.cli.launcher import SCRIPT


def test_loading_the_script_again_loads_the_package_anew() -> None:
    """mitmproxy watches only the script: touching it must bring every change in the package, and let the old one be collected."""
    gc.freeze()
    kept = {name: module for name, module in sys.modules.items() if name.startswith("azure_openai_proxy")}
    try:
        classes = []
        for _ in range(2):
            spec = importlib.util.spec_from_file_location("script", SCRIPT)
            assert spec
            assert spec.loader
            script = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            classes.append(type(script.addons[0]))
            assert 0 == gc.get_freeze_count()
    finally:
        for name in [name for name in sys.modules if name.startswith("azure_openai_proxy")]:
            del sys.modules[name]
        sys.modules.update(kept)
        gc.freeze()  # as before the tests
    assert ["AzureOpenAIProxy"] * 2 == [loaded.__name__ for loaded in classes]
    assert classes[0] is not classes[1]
