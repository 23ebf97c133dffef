"""What an upstream request needs from its user: a policy that decides on attempts, and a client that receives the response."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy import http
    from mitmproxy.connection import Server

    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.config.settings import Timeouts
    from azure_openai_proxy.errors import Failure
    from azure_openai_proxy.routing.decisions import Decision

    from .connect import Destination

__all__ = ["ClientSide", "Hold", "Policy"]


class Policy(Protocol):
    """Chooses the request of each attempt, and whether to retry after a failure."""

    timeouts: Timeouts

    def upstream_request(self) -> tuple[Destination, http.Request] | Failure:
        """The destination and the request of this attempt, with the credentials that the flow does not contain.

        Returns a `Failure` if the request must not be sent.
        """

    def hold(self, response: http.Response) -> Hold | Peek:
        """How much of this response to buffer before the client receives it."""

    def next_attempt(self, failed: Failure | http.Response) -> Decision:
        """Decide after an attempt that failed before the client received anything.

        After `Retry`, `upstream_request` returns the request of the next attempt.
        """

    def broke_off(self, failure: Failure) -> None:
        """The response failed after the client had received a part of it."""


class ClientSide(Protocol):
    """The consumer of the response, and the client's flow control."""

    def connected(self, server: Server) -> None:
        """The server of the current attempt. Also called before a new connection is established."""

    def deliver(self, items: Sequence[Any]) -> None:
        """The next items of the response: an `http.Response`, bytes, trailers as `http.Headers`, or the end as anything else."""

    def failed(self, failure: Failure) -> None:
        """The request failed, before or during the response."""

    def full(self) -> bool:
        """Whether the client reads more slowly than the upstream sends, so that reading must pause."""

    async def writable(self) -> None:
        """Wait until the client has read enough for more to be delivered."""

    def direct_writer(self) -> Callable[[bytes], bool] | None:
        """A function that forwards bytes of the body directly to the client, or None if that is impossible now.

        The function returns False if it did not take the bytes.
        """

    def body_taken(self) -> None:
        """A part of the request body was sent upstream."""


class Hold(enum.Enum):
    """How much of a response to buffer. For a stream, a `Peek` buffers the beginning until it has a verdict."""

    NOTHING = "pass"
    FAILURE = "failure"
    """The complete response, which is then passed to `Policy.next_attempt`."""
    WHOLE = "whole"
    """The complete response, which is then delivered. If it is truncated, another attempt is possible."""
