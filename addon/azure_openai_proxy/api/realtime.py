"""WebSockets: what a client offers as subprotocols, and the models that frames name.

A browser cannot set a header on an upgrade, so OpenAI's clients put the key among the subprotocols. Azure knows `realtime` alone.
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

__all__ = ["Frames", "answered", "in_ascii", "key", "offered", "speaks_beta"]

_KEY = "openai-insecure-api-key."
_OPENAIS_OWN = (_KEY, "openai-organization.", "openai-project.", "openai-beta.")
_BETA = "realtime-v1"
_HEADER = "sec-websocket-protocol"


def _protocols(headers: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in headers.get(_HEADER, "").split(",") if name.strip()]


def key(headers: Mapping[str, str]) -> str:
    """The key among the subprotocols; "" if there is none."""
    return next((name.removeprefix(_KEY) for name in _protocols(headers) if name.startswith(_KEY)), "")


def offered(headers: Mapping[str, str]) -> list[str]:
    """The subprotocols that are Azure's business too."""
    return [name for name in _protocols(headers) if not name.startswith(_OPENAIS_OWN)]


def speaks_beta(headers: Mapping[str, str]) -> bool:
    """Whether the client speaks the protocol of realtime's previews, which Azure has on another path."""
    return headers.get("openai-beta", "").replace("=", "-") == _BETA or f"openai-beta.{_BETA}" in _protocols(headers)


def answered(client: Mapping[str, str], azure: Mapping[str, str]) -> str | None:
    """The subprotocol the client is to be told, where Azure names none: a browser that offered some gives up without."""
    return None if _HEADER in azure else next(iter(offered(client)), None)


class Frames:
    """The models in one connection's frames: the client's names out as deployments, and the deployments back as those names."""

    BACK = (*IN_SESSION, "response.model")
    MOST, LONGEST = 32, 256
    """Names that a connection remembers, and characters of each."""

    def __init__(self, places: Iterable[str], deployment: Callable[[str], str]) -> None:
        self.places = tuple(places)
        self._deployment = deployment
        self._names: dict[str, str] = {}  # deployment → what the client called it last, if that is another name

    def asked(self, model: str) -> str:
        """The deployment for `model`, which will be called so from now on."""
        deployment = self._deployment(model)
        self._names.pop(deployment, None)
        if model != deployment and len(model) <= self.LONGEST:
            self._names[deployment] = model
            if len(self._names) > self.MOST:
                del self._names[next(iter(self._names))]
        return deployment

    def out(self, frame: bytes, large: LargeBody | None = None) -> bytes:
        """A client's frame for Azure. `large`: what was found in a large one at `places`, or at `BACK`."""
        return _renamed(frame, self.places, self.asked, large)

    def back(self, frame: bytes, large: LargeBody | None = None) -> bytes:
        """Azure's frame for the client. The name of a model that was not asked for stays: it says what answered."""
        if not self._names:
            return frame
        return _renamed(frame, self.BACK, lambda deployment: self._names.get(deployment, deployment), large)


def _renamed(frame: bytes, places: tuple[str, ...], new: Callable[[str], str], large: LargeBody | None) -> bytes:
    if large:
        return json_edit.renamed(frame, large.strings(*places), new)
    if b'"model"' not in frame:  # audio: most frames by far
        return frame
    try:
        json.loads(frame)
    except (ValueError, RecursionError):
        return frame
    return json_edit.rename(frame, places, new)


PIECE = 64 * 1024
_WIDE = re.compile(r"[^\x00-\x7f]+")


def pieces_in_ascii(document: bytes) -> Iterator[bytes]:
    """The same of a large document, a piece at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(document), PIECE):
        yield in_ascii(decoder.decode(document[start : start + PIECE]).encode())


def in_ascii(document: bytes) -> bytes:
    """JSON with escapes in place of all that is not ASCII, which stands only in its strings."""
    return document if document.isascii() else _WIDE.sub(lambda text: json.dumps(text[0])[1:-1], document.decode()).encode()
