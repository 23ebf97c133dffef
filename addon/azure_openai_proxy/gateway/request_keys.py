"""The keys of one request. They are kept here and not on its flow, which mitmproxy shows and saves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from azure_openai_proxy import errors
from azure_openai_proxy.api import redaction
from azure_openai_proxy.api.redaction import Fields, Hidden
from azure_openai_proxy.client_leg.headers import is_checked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mitmproxy import http

    from azure_openai_proxy.client_leg.headers import Headers

__all__ = ["RequestKeys", "key_in_path"]


def key_in_path() -> errors.BadRequest:
    """The error of a path that contains the client's key, e.g. as the id of a file: it cannot be removed from there."""
    return errors.BadRequest("The path contains the client's key.", code="key_in_path")


@dataclass(slots=True)
class RequestKeys:
    """The keys that are masked on the flow of a request, and all keys that its response might repeat."""

    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Keys of the client and of the backends, set once the request is translated."""
    _hidden: Hidden = Hidden()  # noqa: RUF009 - immutable
    _masked: tuple[Fields, bytes] = field(default=((), b""), repr=False)  # headers and path after the last masking

    def read(self, keys: Iterable[str | None]) -> None:
        """Set the keys that a response might repeat."""
        self.secrets = tuple(filter(None, {*keys}))

    def add(self, secret: str | None) -> None:
        """Add a key that is sent to Azure, if it is not known yet."""
        if secret and secret not in self.secrets:
            self.secrets = (*self.secrets, secret)

    @property
    def all(self) -> tuple[str, ...]:
        """The keys of the request, including those of a request that is not translated."""
        secrets = self.secrets
        more = [secret for secret in self._hidden.secrets if secret not in secrets]
        return (*secrets, *more) if more else secrets

    def hide(self, request: http.Request) -> None:
        """Mask the keys of `request` in place, and keep them."""
        checked = is_checked(request)
        self._hidden = redaction.hide(request)
        if checked:
            cast("Headers", request.headers).checked = request.headers.fields  # a mask is valid too
        self._masked = request.headers.fields, request.data.path

    @property
    def in_path(self) -> bool:
        """Whether the client has written its key into the path too."""
        path = self._hidden.path
        return path is not None and path[0].partition("?")[0] != path[1].partition("?")[0]

    def restored(self, request: http.Request) -> http.Request:
        """Return a copy of the head of `request` that has its keys, without a body."""
        return redaction.with_secrets(request, self._hidden)

    def is_changed(self, request: http.Request) -> bool:
        """Whether a user or another addon has changed the head of `request` since it was masked."""
        fields, path = self._masked
        return request.headers.fields is not fields or request.data.path is not path

    def mask_changes(self, request: http.Request) -> None:
        """Mask keys that a user or another addon has added to the request meanwhile."""
        if self.is_changed(request):
            redaction.hide(request)

    def mask_head(self, response: http.Response) -> None:
        """Mask keys in the response headers before they are displayed, recorded or forwarded."""
        redaction.mask_response_head(response, self.secrets or self._hidden.secrets)

    def mask_trailers(self, response: http.Response) -> None:
        """Mask keys in the trailers of a response."""
        if response.trailers:
            response.trailers.fields = redaction.mask_fields(response.trailers.fields, self.secrets or self._hidden.secrets)
