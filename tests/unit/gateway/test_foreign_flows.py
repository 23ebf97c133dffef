"""When responses of other hosts stream."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from mitmproxy.test import taddons

from azure_openai_proxy.gateway import foreign_flows


@pytest.mark.parametrize("why", ["nothing", "view", "option", "detail", "script"])
def test_streams(why: str) -> None:
    """Unless the bodies are needed."""
    with taddons.context(SimpleNamespace(name="dumper"), SimpleNamespace(name="scriptloader", addons=[])) as context:
        master: Any = context.master
        context.options.add_option("flow_detail", int, 3 if why == "detail" else 1, "")
        context.options.add_option("modify_body", str, "/a/b" if why == "option" else "", "")
        if why == "view":
            master.view = object()
        if why == "script":
            cast("Any", master.addons.get("scriptloader")).addons.append(SimpleNamespace(response=None))
        assert foreign_flows.streams(master) is (why == "nothing")
