"""Fewer writes to a client."""

from __future__ import annotations

from typing import Any, cast

import pytest
from mitmproxy.proxy import commands
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg import writes


def test_joined() -> None:
    """Writes to one peer are one; another peer, another command, or more than is worth copying comes between."""
    client, server = tflow.tclient_conn(), tflow.tserver_conn()
    big = b"x" * writes.SMALL
    log = commands.Log("")
    sent = [(client, b"a"), (client, b"b"), (server, b"c"), None, (server, b"d"), (server, big), (server, b"e"), None, None, (client, b"f")]
    doing = (commands.SendData(*one) if one else log for one in sent)
    joined: Any = writes.joined(cast("Any", doing))
    found = [command if command is log else (command.connection, command.data) for command in joined]
    assert [(client, b"ab"), (server, b"c"), log, (server, b"d"), (server, big), (server, b"e"), log, log, (client, b"f")] == found
    assert [log] == list(writes.joined(cast("Any", iter([log]))))


def test_joined_until_it_fails() -> None:
    """The chunks before the failure are passed on."""

    def failing() -> Any:
        if said:
            yield commands.SendData(tflow.tclient_conn(), b"a")
        raise ValueError

    for said in (True, False):
        found: list[bytes] = []
        with pytest.raises(ValueError, match=r"^$"):
            found.extend(cast("commands.SendData", command).data for command in writes.joined(failing()))
        assert ([b"a"] if said else []) == found
