"""mitmproxy's checks of the types in a message."""

from __future__ import annotations

import pytest
from mitmproxy.test import tutils

from azure_openai_proxy.client_leg import message_types


def test_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are checked unless that is off; under -O there is nothing to leave out."""
    message_types.check(on=False)
    tutils.treq(port="a port")
    message_types.check(on=True)
    with pytest.raises(TypeError):
        tutils.treq(port="a port")
    monkeypatch.setattr(message_types, "_check", None)
    message_types.check(on=False)
    with pytest.raises(TypeError):
        tutils.treq(port="a port")
