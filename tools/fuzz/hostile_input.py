"""A hostile request: what is known of it, and its hostile text.

Every request carries its number in a header, a mark that identifies it (`Input.mark`), and a hot mark inside its hostile text
(`Input.hot`). `Input.places` lists the places where the hot mark may arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from support import hostile_requests

if TYPE_CHECKING:
    import random

    from support.hostile_requests import Case

__all__ = ["CLIENT_KEY", "CONFIGS", "CONFIGURED_KEY", "HOT", "KEY_SIGN", "NUMBER", "Config", "Input", "hostile_text"]

NUMBER = b"x-fuzz-number"
CONFIGURED_KEY = "configured-key-27182818"
KEY_SIGN = "clients-own-key-"
"""Prefix of all client keys."""
CLIENT_KEY = KEY_SIGN + "%08d"
HOT = b"zh0000000hz"
EVIL = hostile_requests.MARK.encode()


class Config(NamedTuple):
    """The configuration of one mitmdump."""

    name: str
    version: str
    key: bool = False  # a key is configured
    mode: str = "azure"
    simulated: bool = False  # the upstream is the simulator
    share: int = 4


CONFIGS = (
    Config("dated, clients' keys", "2024-10-21", share=5),
    Config("v1, clients' keys", "v1", share=4),
    Config("dated, configured key", "2025-04-01-preview", key=True, share=5),
    Config("v1, configured key", "v1", key=True),
    Config("openai mode", "v1", mode="openai", share=2),
    Config("simulator", "2024-10-21", key=True, simulated=True, share=1),
)


@dataclass(slots=True)
class Input:
    number: int
    config: Config
    transport: str
    way: str
    place: str  # of the hostile text
    places: frozenset[str]  # where the hostile text may arrive
    case: Case | None = None
    data: bytes = b""  # HTTP/1.1: all sent bytes; HTTP/2: frames, with stream identifiers from 1
    frames: bytes = b""  # sent after the upgrade
    splits: bool = False  # contains the client's own line breaks: it may become several requests
    alone: bool = False  # HTTP/2: it may end the connection and the other requests on it

    @property
    def mark(self) -> bytes:
        return b"zq%07dqz" % self.number

    @property
    def hot(self) -> bytes:
        return b"zh%07dhz" % self.number

    @property
    def key(self) -> bytes:
        return (CLIENT_KEY % self.number).encode()

    @property
    def stray(self) -> bytes:
        """A key in a wrong place. The client put it there, so the proxy need not find it."""
        return b"stray-%b" % self.hot


ATOMS: tuple[bytes, ...] = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x0c",
    b"\x1b[2J\x1b]0;",
    b"\x07",
    b"\x7f",
    "\u2028".encode(),
    "\u2029".encode(),
    b"\x85",
    "\u200b\ufeff\u202e".encode(),
    b"%",
    b"%0d%0a",
    b"%250d%250a",
    b"%c0%8d%c0%8a",
    b"%e5%98%8d%e5%98%8a",
    b"%00",
    b"%2e%2e%2f",
    b"%252e%252e%252f",
    b"%c0%ae%c0%ae%c0%af",
    b"..",
    b"../",
    b"..\\",
    b"/",
    b"//",
    b"\\",
    b";",
    b"$(",
    b"`",
    b"|",
    b"&",
    b"'",
    b'"',
    b"<",
    b">",
    b"#",
    b"?",
    b"=",
    b",",
    b":",
    b"@",
    b"*",
    b"{",
    b"}",
    b"\xff",
    b"\xed\xa0\x80",
    b"HTTP/1.1",
    b"Bearer ",
    b"api-key=",
    b"model=",
    b"A" * 300,
)
LONG = (b"A" * 20_000, b"../" * 4_000, b"%2e" * 4_000, b"\xc3\xa9" * 5_000)


def hostile_text(chosen: random.Random) -> bytes:
    """Hostile text that contains the hot mark."""
    draw = chosen.random()
    if draw < 0.5:
        return chosen.choice(hostile_requests.TEXTS).replace(EVIL, HOT)
    if draw < 0.52:
        return chosen.choice(LONG) + HOT
    atoms = chosen.choices(ATOMS, k=chosen.randint(1, 4))
    atoms.insert(chosen.randint(0, len(atoms)), HOT)
    return b"".join(atoms)
