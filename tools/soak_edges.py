"""Backends for `soak` with faults of their connections: HTTPS servers in threads that record each request and its end.

    idle connections are closed at random moments, also while a request arrives
    the address of a backend changes, and its name with it; its certificate changes
    TLS alerts: of a handshake, before a response, and in the middle of a stream
    1xx responses before a response, trailers behind it

The last backend has none of the faults that make a request fail. A request has a unique word, and `Edges.wrong` compares the arrivals of
the word with the rules for sending a request again.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import select
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from azure_simulator import tls as certificates

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MODEL", "Arrival", "Edge", "Edges", "problem"]

MODEL = "edge"
CERTIFICATES = 3
NAMES = ("edge-a.example", "edge-b.example", "edge-c.example")

CLOSE, CUT, ALERT, DEMAND = 0.25, 0.01, 0.01, 0.05
"""Shares of responses after which the connection is closed, of requests without a response and of streams that end in an alert, and of
connections for which a client certificate is required."""
IDLE = 0.4  # greatest number of seconds until such a connection is closed
INFORMATIONAL = (b"100 Continue", b"102 Processing", b"103 Early Hints")
MOST_UNSENT = 0.001
"""Share of requests that need not arrive: two backends wanted a client certificate, and the third one closed a connection so late that the
request counts as lost."""
GARBAGE = b"\x15\x03\x03\x00\x02\x02\x28"  # an alert that is not encrypted: the receiver ends the connection with an alert
TRAILERS = b"0\r\nX-Checksum: 1\r\nX-Authorization: none\r\n\r\n"


@dataclass
class Arrival:
    """A request that a backend has read."""

    edge: str
    connection: int
    reused: bool
    sent: str = "nothing"  # of the response; or "some bytes", "an event" of a stream, "everything"
    moved: bool = False  # the backend had closed the connection, perhaps before this request was read from it


class Edge:
    """One backend. It listens at one address at a time."""

    def __init__(self, name: str, number: int, edges: Edges, *, fails: bool) -> None:
        self.name, self.edges, self.fails = name, edges, fails
        self._number = number
        self._random = random.Random(number)  # noqa: S311 - no secret
        self._listening: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._moved: set[socket.socket] = set()  # those of `_open` that were closed with an address
        self.connections = 0
        self.address = ""
        self.port = 0
        self.move()

    @property
    def url(self) -> str:
        return f"https://{self.name}:{self.port}"

    def move(self) -> None:
        """Listen at the next address and close everything at the old one."""
        last = int(self.address.rpartition(".")[2]) if self.address else 1
        address = f"127.0.{10 + self._number}.{last % 250 + 1}"
        listening = socket.create_server((address, self.port), backlog=256)
        old, self._listening, self.address, self.port = self._listening, listening, address, listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        if old:
            self._shut(old)
            for sock in list(self._open):
                self._moved.add(sock)
                self._shut(sock)

    def stop(self) -> None:
        for sock in [self._listening, *self._open]:
            if sock:
                self._shut(sock)

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        """End a socket, which its thread then closes."""
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                listening.close()
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True).start()

    def _serve(self, plain: socket.socket, connection: int) -> None:
        demanding = self.fails and self._random.random() < DEMAND
        context = self.edges.context(demanding=demanding)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(60)
        with suppress(OSError, ValueError), plain:
            sock = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            self._open.add(sock)
            try:
                with sock:
                    try:
                        sock.do_handshake()
                        self._requests(sock, connection)
                    except ssl.SSLError:  # an alert needs time to arrive
                        self.edges.counts["alert of a handshake"] += demanding
                        socket.socket.shutdown(sock, socket.SHUT_WR)
                        while socket.socket.recv(sock, 65536):
                            pass
            finally:
                self._open.discard(sock)
                self._moved.discard(sock)

    def _requests(self, sock: ssl.SSLSocket, connection: int) -> None:
        reused = False
        while True:
            if reused and self._random.random() < CLOSE:
                select.select([sock], [], [], self._random.uniform(0, IDLE))
                self.edges.counts["idle connection closed"] += 1
                return
            body = _read(sock)
            asked = json.loads(body)
            word, stream = asked["messages"][0]["content"], bool(asked.get("stream"))
            chance = self._random.random()
            cut = self.fails and chance < CUT + ALERT
            broken = self.fails and stream and not cut and chance < CUT + 2 * ALERT
            arrival = Arrival(self.name, connection, reused)
            self.edges.arrived(word, arrival)
            if cut:
                if chance < ALERT:
                    self.edges.counts["alert before a response"] += 1
                    socket.socket.sendall(sock, GARBAGE)
                else:
                    self.edges.counts["closed before a response"] += 1
                return
            try:
                if informational := self._informational():
                    sock.sendall(informational)
                    arrival.sent = "some bytes"
                if stream:
                    self._stream(sock, word, arrival, broken=broken)
                else:
                    self._whole(sock, word, arrival)
            finally:
                arrival.moved = sock in self._moved
            if broken:
                return
            arrival.sent = "everything"
            reused = True

    def _informational(self) -> bytes:
        responses = self._random.choices(INFORMATIONAL, k=self._random.choice((0, 0, 1, 2)))
        self.edges.counts["1xx"] += len(responses)
        return b"".join(b"HTTP/1.1 %b\r\nLink: </a>\r\n\r\n" % response for response in responses)

    def _whole(self, sock: ssl.SSLSocket, word: str, arrival: Arrival) -> None:
        message = {"role": "assistant", "content": f"You said: {word}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if self._random.random() < 0.5:
            sock.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
            return
        self.edges.counts["trailers"] += 1
        at = self._random.randrange(1, len(body))
        sock.sendall(b"%bTransfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n%b" % (head, _chunk(body[:at])))
        arrival.sent = "some bytes"
        sock.sendall(_chunk(body[at:]) + TRAILERS)

    def _stream(self, sock: ssl.SSLSocket, word: str, arrival: Arrival, *, broken: bool) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        arrival.sent = "some bytes"
        for piece in ("You ", "said: ", word):
            choice = {"index": 0, "finish_reason": None, "delta": {"content": piece}}
            event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
            sock.sendall(_chunk(b"data: %b\n\n" % json.dumps(event).encode()))
            arrival.sent = "an event"
            if broken and piece != word:
                self.edges.counts["alert in a stream"] += 1
                time.sleep(0.05)  # so that the event was sent on
                socket.socket.sendall(sock, GARBAGE)
                return
        self.edges.counts["trailers"] += 1
        sock.sendall(_chunk(b"data: [DONE]\n\n") + TRAILERS)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _read(sock: ssl.SSLSocket) -> bytes:
    """The body of the next request.

    Raises:
        ValueError: there is no further request.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += _more(sock)
    return body


def _more(sock: ssl.SSLSocket) -> bytes:
    data = sock.recv(1 << 16)
    if not data:
        raise ValueError
    return data


class Edges:
    """The backends, and the arrivals of each word."""

    def __init__(self, home: Path, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self.counts: Counter[str] = Counter()
        self._arrivals: defaultdict[str, list[Arrival]] = defaultdict(list)
        self._lock = threading.Lock()
        self._contexts: list[tuple[ssl.SSLContext, ssl.SSLContext]] = []
        trusted = []
        for number in range(CERTIFICATES):
            folder = home / f"certificates-{number}"
            folder.mkdir()
            pair = []
            ca, context = certificates.make(folder, NAMES)
            trusted.append(ca.read_text())
            pair.append(context)
            demanding = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            demanding.load_cert_chain(folder / "server.pem")
            demanding.load_verify_locations(ca)
            demanding.verify_mode = ssl.CERT_REQUIRED
            self._contexts.append((context, demanding))
        self.ca = home / "trusted.pem"
        self.ca.write_text("".join(trusted))
        self._certificate = 0
        self.edges = [Edge(name, number, self, fails=number < len(NAMES) - 1) for number, name in enumerate(NAMES)]
        self.hosts = home / "hosts.json"
        self._tell_addresses()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for edge in self.edges:
            edge.stop()

    def _tell_addresses(self) -> None:
        """Write what names resolve to: sometimes an address that refuses connections comes first."""
        found = {
            edge.name: [*([f"127.0.9.{edge.port % 250 + 1}"] if self._random.random() < 0.5 else []), edge.address] for edge in self.edges
        }
        new = self.hosts.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.replace(self.hosts)

    def context(self, *, demanding: bool) -> ssl.SSLContext:
        return self._contexts[self._certificate][demanding]

    def change(self) -> None:
        """Change an address or the certificates."""
        if self._random.random() < 0.5:
            self._certificate = (self._certificate + 1) % CERTIFICATES
            self.counts["certificates changed"] += 1
        else:
            self._random.choice([edge for edge in self.edges if edge.fails]).move()
            self._tell_addresses()
            self.counts["address changed"] += 1

    def arrived(self, word: str, arrival: Arrival) -> None:
        with self._lock:
            self._arrivals[word].append(arrival)

    def wrong(self, outcomes: dict[str, str]) -> list[str]:
        """The words that were sent again although no rule allows it, or whose response is not the one that was sent."""
        found = [
            f"{word}: {wrong}; {outcome!r}, arrivals {self._arrivals.get(word, [])}"
            for word, outcome in outcomes.items()
            if (wrong := problem(self._arrivals.get(word, []), outcome))
        ]
        unsent = sum(word not in self._arrivals for word in outcomes)
        return [*found, *([f"{unsent} of {len(outcomes)} requests were never sent"] if unsent > len(outcomes) * MOST_UNSENT else [])]


def problem(arrivals: list[Arrival], outcome: str) -> str | None:
    """Return which rule one request has broken: it arrived as `arrivals`, and `outcome` is what its client got."""
    moves = 0
    # What was read from a closed connection may have been sent before the others.
    arrivals = sorted(arrivals, key=lambda arrival: not (arrival.moved and arrival.sent in ("nothing", "some bytes")))
    for one, following in itertools.pairwise(arrivals):
        if one.sent in ("an event", "everything"):
            return "sent again after a response"
        if one.edge != following.edge:
            moves += 1
        elif one.sent != "nothing" or not one.reused or following.reused:
            return "sent again to the same backend, and not for a stale connection"
    if moves > 1:
        return "sent to a third backend"
    expected: tuple[str, ...] = ("502",)
    if arrivals and arrivals[-1].sent == "everything":
        expected = ("JSON", "stream")
    elif arrivals and arrivals[-1].sent == "an event":
        expected = ("interrupted stream with an error",)
    return None if outcome.startswith(expected) else "not the response that was sent"
