"""Optional libraries: each extra of the package, the modules that it brings, and the error without them."""

from __future__ import annotations

import importlib.util
from typing import Literal

from azure_openai_proxy.errors import SettingsError

__all__ = ["EXTRAS", "Extra", "require"]

type Extra = Literal["entra", "ledger", "metrics", "otel", "redis"]

EXTRAS: dict[Extra, tuple[str, tuple[str, ...]]] = {
    "entra": ("azure-identity", ("azure.identity",)),
    "ledger": ("SQLAlchemy and psycopg", ("sqlalchemy", "psycopg")),
    "metrics": ("prometheus-client", ("prometheus_client",)),
    "otel": ("OpenTelemetry", ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")),
    "redis": ("redis", ("redis.asyncio", "hiredis")),
}
"""The name of each extra's library, and the modules that must be there."""


def require(extra: Extra, what: str = "it") -> None:
    """Check that an extra is installed. `what` needs it.

    Raises:
        SettingsError: it is not. One line that says how to install it.
    """
    library, modules = EXTRAS[extra]
    if not all(map(_installed, modules)):
        raise SettingsError(f'{what} needs {library}: pip install ".[{extra}]" in the proxy\'s repository')


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
