"""An option is read once, and again after a change."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from mitmproxy.options import Options

from azure_openai_proxy.client_leg.option_values import values_of


class Counted(Options):
    reads: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        self.reads.append(name)
        return super().__getattr__(name)  # type: ignore[no-untyped-call] # of mitmproxy


def test_a_value_until_a_change() -> None:
    """The value of an option is that of mitmproxy's options at any time, and is read once while nothing changes."""
    options = Counted()
    values = values_of(options)
    assert values is values_of(options)
    assert values.cert_passphrase is None
    options.update(cert_passphrase="1")  # type: ignore[no-untyped-call] # of mitmproxy
    options.reads.clear()
    assert ["1", "1", False] == [values.cert_passphrase, values.cert_passphrase, values.ssl_insecure]
    assert ["cert_passphrase", "ssl_insecure"] == options.reads


def test_other_options() -> None:
    """Other options have other values, and an unknown option is an error."""
    values = values_of(Options())
    assert values is not values_of(Options())
    with pytest.raises(AttributeError, match="unheard_of"):
        _ = values.unheard_of
