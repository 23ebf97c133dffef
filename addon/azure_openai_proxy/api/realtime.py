"""WebSockets: subprotocols and the model names in frames.

A browser cannot set a header on a WebSocket upgrade, so OpenAI's clients send the key as a subprotocol. Azure only supports the subprotocol
`realtime`.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import json_edit

from .endpoints import IN_SESSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .large_bodies import LargeBody

__all__ = ["Frames", "Literal", "accepted_protocol", "in_ascii", "key", "offered", "pieces_in_ascii", "speaks_beta"]

_KEY = "openai-insecure-api-key."
_OPENAIS_OWN = (_KEY, "openai-organization.", "openai-project.", "openai-beta.")
_BETA = "realtime-v1"
_HEADER = "sec-websocket-protocol"


def _protocols(headers: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in headers.get(_HEADER, "").split(",") if name.strip()]


def key(headers: Mapping[str, str]) -> str:
    """Return the key among the subprotocols; "" if there is none."""
    return next((name.removeprefix(_KEY) for name in _protocols(headers) if name.startswith(_KEY)), "")


def offered(headers: Mapping[str, str]) -> list[str]:
    """Return the subprotocols to forward to Azure."""
    return [name for name in _protocols(headers) if not name.startswith(_OPENAIS_OWN)]


def speaks_beta(headers: Mapping[str, str]) -> bool:
    """Return whether the client uses the preview protocol of realtime, which has its own path at Azure."""
    return headers.get("openai-beta", "").replace("=", "-") == _BETA or f"openai-beta.{_BETA}" in _protocols(headers)


def accepted_protocol(client: Mapping[str, str], azure: Mapping[str, str]) -> str | None:
    """Return the subprotocol to add to a response of Azure without one. A browser that offered subprotocols fails without it."""
    return None if _HEADER in azure else next(iter(offered(client)), None)


class Literal:
    r"""A JSON string to find in frames, also where it is written with escapes (`\u006d` for `m`), which Azure reads all the same."""

    def __init__(self, text: str) -> None:
        self._plain = f'"{text}"'.encode()
        hexadecimal = ("".join(f"[{digit}{digit.upper()}]" for digit in f"{ord(character):04x}") for character in text)
        pattern = "".join(rf"(?:{re.escape(character)}|\\u{digits})" for character, digits in zip(text, hexadecimal, strict=True))
        self._pattern = re.compile(f'"{pattern}"'.encode())

    def is_in(self, frame: bytes) -> bool:
        """Return whether a frame has the string. Most frames have no escapes and are not searched for them."""
        return self._plain in frame or (b"\\u" in frame and self._pattern.search(frame) is not None)


class Frames:
    """Renames the models in one connection's frames: the client's names to deployments, and deployments back to those names."""

    BACK = (*IN_SESSION, "response.model")
    MOST, LONGEST = 32, 256
    """Maximum number of names that are kept per connection, and maximum length of each in characters."""

    def __init__(self, places: Iterable[str], deployment: Callable[[str], str]) -> None:
        self.places = tuple(places)
        self._deployment = deployment
        self._names: dict[str, str] = {}  # deployment → the client's last name for it, if they differ

    def deployment_for(self, model: str) -> str:
        """Return the deployment for `model`, and rename it back to `model` from now on."""
        deployment = self._deployment(model)
        self._names.pop(deployment, None)
        if model != deployment and len(model) <= self.LONGEST:
            self._names[deployment] = model
            if len(self._names) > self.MOST:
                del self._names[next(iter(self._names))]
        return deployment

    def out(self, frame: bytes, large: LargeBody | None = None) -> bytes:
        """Rename the models in a client's frame for Azure. `large`: the scanned frame, if it is large, with `places` or `BACK` located."""
        return _renamed(frame, self.places, self.deployment_for, large)

    def back(self, frame: bytes, large: LargeBody | None = None) -> bytes:
        """Rename the models in Azure's frame for the client. A model that the client did not name stays, so the client sees which model
        responded.
        """
        if not self._names:
            return frame
        return _renamed(frame, self.BACK, lambda deployment: self._names.get(deployment, deployment), large)


def _renamed(frame: bytes, places: tuple[str, ...], new: Callable[[str], str], large: LargeBody | None) -> bytes:
    if large:
        return json_edit.renamed(frame, large.strings(*places), new)
    if b'"model"' not in frame:  # most frames are audio and have no model
        return frame
    try:
        json.loads(frame)
    except (ValueError, RecursionError):
        return frame
    return json_edit.rename(frame, places, new)


PIECE = 64 * 1024
_WIDE = re.compile(r"[^\x00-\x7f]+")


def pieces_in_ascii(document: bytes) -> Iterator[bytes]:
    """Yield the result of `in_ascii` for a large document, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(document), PIECE):
        yield in_ascii(decoder.decode(document[start : start + PIECE]).encode())


def in_ascii(document: bytes) -> bytes:
    """Escape the non-ASCII characters of a JSON document. They occur only in its strings."""
    return document if document.isascii() else _WIDE.sub(lambda text: json.dumps(text[0])[1:-1], document.decode()).encode()
