"""The resource, the HTTP session and the count of losses, which the exporters of traces and metrics share."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from azure_openai_proxy.compatibility import own_version

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCOPE", "CollectorSession", "Losses", "resource"]

logger = logging.getLogger(__name__)

SCOPE = "azure_openai_proxy"
"""Name of the instrumentation scope."""
LOG_EVERY = 60.0


def resource() -> Resource:
    """The attributes of this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override and extend them."""
    sdk = Resource.create().attributes
    own = {name: value for name, value in sdk.items() if name.startswith("telemetry.sdk.")}
    own |= {
        "service.name": "azure-openai-proxy",
        "service.version": own_version(),
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource(own).merge(OTELResourceDetector().detect())


class Rejected(Exception):
    """A response that is neither a success nor an error, such as a redirect."""


class CollectorSession(requests.Session):
    """Sends to the collector. No redirect is followed, and the body of a response is not read, since it may be of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.outcome = ""
        """Of the last request, for the log."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        self.outcome = "no response"
        try:
            response = super().request(*args, **kwargs | {"allow_redirects": False, "stream": True})
        except requests.RequestException as error:
            self.outcome = type(error).__name__
            raise
        response.close()
        self.outcome = f"HTTP {response.status_code}"
        if 300 <= response.status_code < 400:
            raise Rejected(self.outcome)  # the exporter would count it as a success
        return response


class Losses:
    """Counts lost records, spans and exports. The log has a line at most once a minute."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost: dict[str, int] = {}
        self._host = urlsplit(url).netloc
        self._clock = clock
        self._lock = threading.Lock()
        self._logged = float("-inf")
        self._at_log: dict[str, int] = {}

    def add(self, kind: str, count: int, reason: str) -> None:
        """Add losses. Called by all threads."""
        with self._lock:
            self.lost[kind] = self.lost.get(kind, 0) + count
            now = self._clock()
            if now - self._logged < LOG_EVERY:
                return
            self._logged = now
            news = {name: total - self._at_log.get(name, 0) for name, total in self.lost.items()}
            self._at_log = dict(self.lost)
        what = ", ".join(f"{number} {name}" for name, number in news.items() if number)
        logger.warning("OpenTelemetry: not exported to %s: %s (%s)", self._host, what, reason)
