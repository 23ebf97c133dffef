"""Background discovery of the deployments of an Azure resource. No request waits for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import ssl
import urllib.request
from typing import TYPE_CHECKING

import certifi

if TYPE_CHECKING:
    from mitmproxy.optmanager import OptManager

    from azure_openai_proxy.api.backend import Backend
    from azure_openai_proxy.config.settings import Settings

__all__ = ["Discovery", "fetch", "parse"]

logger = logging.getLogger(__name__)

REFRESH = 300.0
"""Seconds between two queries."""

TIMEOUT = 10.0

# The only api-version that lists deployments with the resource's key. It is retired, but Azure still serves it in 2026.
_PATH = "/openai/deployments?api-version=2023-03-15-preview"

MOST = 4 << 20
"""Bytes of a response that are read. A resource has up to a few hundred deployments of less than a kilobyte each."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because the request carries the key, which only the configured host may receive."""

    def redirect_request(self, *_: object) -> None:
        """Return None, so that urllib's error handler raises an OSError that names the status."""


class Discovery:
    """Queries the backend of the current settings. `names` are the deployments of the last successful response."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._followed: Backend | None = None
        self._task: asyncio.Task[None] | None = None

    def follow(self, settings: Settings, options: OptManager) -> None:
        """Start, restart or stop the queries according to these settings. Call it after each change of settings."""
        wanted = settings.backend if settings.discover_models and settings.mode == "azure" and settings.token else None
        if wanted == self._followed:
            return
        self._followed, self.names = wanted, ()
        self.close()
        if wanted:
            context = ssl.create_default_context(cafile=options.ssl_verify_upstream_trusted_ca or certifi.where())
            if options.ssl_insecure:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._task = asyncio.get_running_loop().create_task(self._poll(wanted, context))

    def close(self) -> None:
        """Stop the queries."""
        if self._task:
            self._task.cancel()
            self._task = None

    async def _poll(self, backend: Backend, context: ssl.SSLContext) -> None:
        failed = False
        while True:
            try:
                self.names = await asyncio.to_thread(fetch, backend, context)
                failed = False
            except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
                if not failed:  # log once per outage; the last names stay valid
                    logger.warning("The deployments of %s cannot be listed (%s): /v1/models has the configured names.", backend.base, error)
                failed = True
            await asyncio.sleep(REFRESH)


def fetch(backend: Backend, context: ssl.SSLContext) -> tuple[str, ...]:
    """Query the deployments of a backend; blocks for up to `TIMEOUT` seconds.

    Raises:
        OSError: the connection failed, or the status is an error or a redirect.
        HTTPException: the response is not HTTP.
        ValueError, RecursionError: the response is not a list of deployments.
    """
    request = urllib.request.Request(f"{backend.base}{_PATH}", headers={"api-key": backend.token})  # noqa: S310 - the base is http or https
    # Ignore HTTPS_PROXY: it may point to this proxy.
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirects())
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
        return parse(response.read(MOST))


def parse(content: bytes) -> tuple[str, ...]:
    """The names of the deployments that are ready to use.

    Raises:
        ValueError: `content` is not a list of deployments.
    """
    document = json.loads(content)
    items = document.get("data") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ValueError("the response is not a list")  # noqa: TRY004 - of the content, as JSON's own
    usable = (item for item in items if isinstance(item, dict) and item.get("status") in (None, "succeeded"))
    return tuple(name for item in usable if isinstance(name := item.get("id"), str))
