"""Both ends of the wire under a test's control: an upstream that answers on command, and clients of HTTP/1 and HTTP/2."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import TYPE_CHECKING, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Mitmdump

__all__ = ["HTTP2", "Peer", "Upstream", "connect", "end", "post", "read_head", "response"]


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions", version: bytes = b"1.1") -> bytes:
    """A request as it stands on the wire."""
    lines = [b"POST %b HTTP/%b" % (path, version), b"Host: localhost", b"Authorization: Bearer azure-key-0123456789abcdef", *headers]
    return b"\r\n".join([*lines, b"Content-Type: application/json", b"Content-Length: %d" % len(body), b"", body])


def connect(proxy: Mitmdump, *, tls: bool = False, receive: int = 0) -> socket.socket:
    """A client's connection. `receive`: bytes that the system takes in before the client reads."""
    plain = socket.socket()
    if receive:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    plain.settimeout(PATIENCE)
    plain.connect(("127.0.0.1", proxy.port))
    if not tls:
        return plain
    context = ssl.create_default_context(cafile=str(proxy.ca))
    context.set_alpn_protocols(["http/1.1"])
    return context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)


def read_head(connection: socket.socket) -> bytes:
    """The bytes up to the blank line, and none after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    return head


def end(connection: socket.socket) -> bool:
    """Wait until the other side has closed or reset the connection; False: it sends something instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


class Peer:
    """One connection that the upstream has accepted."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def request(self) -> tuple[bytes, bytes]:
        """The next request: its head and its body."""
        head = read_head(self.socket)
        lines = head.lower().split(b"\r\n")
        length = next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)
        body = b""
        while len(body) < length:
            body += self.socket.recv(length - len(body))
        return head, body

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, body: bytes = b"{}") -> None:
        self.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def begin_stream(self) -> None:
        self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def chunks_without_end(self, data: bytes) -> None:
        """Raises `ConnectionError` when the connection is closed."""
        while True:
            self.chunk(data)

    def drain(self) -> int:
        """Read until the other side closes or resets the connection; how much it was."""
        total = 0
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(1 << 20):
                total += len(data)
        return total

    def ended(self) -> bool:
        return end(self.socket)

    def reset(self) -> bool:
        """Wait for a RST, without reading."""
        poll = select.poll()
        poll.register(self.socket, 0)  # POLLERR and POLLHUP are always reported
        return any(event & select.POLLERR for _, event in poll.poll(PATIENCE * 1000))


class Upstream:
    """Listens, and does nothing by itself."""

    def __init__(self, *, receive: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        if receive:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self._socket.settimeout(PATIENCE)
        self._peers: list[socket.socket] = []
        self._waiting: list[socket.socket] = []  # those of `_peers` that have not brought a byte yet
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for peer in self._peers:
            peer.close()

    def accept(self) -> Peer:
        """Return the next connection that has brought a byte. The proxy may have opened another in advance."""
        asked = self._asked(PATIENCE)
        assert asked, "no connection brought a byte"
        return Peer(asked)

    def unasked(self) -> bool:
        """Return whether no further connection has brought a byte."""
        return self._asked(0) is None

    def _asked(self, timeout: float) -> socket.socket | None:
        """Wait until a connection that was not returned before has brought a byte."""
        while readable := select.select([self._socket, *self._waiting], [], [], timeout)[0]:
            for connection in readable:
                if connection is self._socket:
                    accepted, _ = self._socket.accept()
                    accepted.settimeout(PATIENCE)
                    self._waiting.append(accepted)
                    self._peers.append(accepted)
                    continue
                self._waiting.remove(connection)
                with contextlib.suppress(ConnectionError):
                    if connection.recv(1, socket.MSG_PEEK):
                        return connection
        return None


def response(connection: socket.socket, method: str = "POST", head: bytes = b"") -> tuple[int, bytes]:
    """The next response of an HTTP/1 connection, and no byte after it. `head`: its head, if that has been read."""
    head = head or read_head(connection)
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    body = b""
    if method == "HEAD":
        pass
    elif headers.get(b"transfer-encoding") == b"chunked":
        while size := int(_line(connection), 16):
            body += _exactly(connection, size)
            _line(connection)
        _line(connection)
    elif b"content-length" in headers:
        body = _exactly(connection, int(headers[b"content-length"]))
    else:
        body = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return int(head.split()[1]), body


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {line!r}"
        line += byte
    return line


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, f"closed after {len(data)} bytes of {size}"
        data += piece
    return data


class HTTP2:
    """A client's HTTP/2 connection, whose frames go out when `send` is called. It gives no window back by itself unless `greedy`."""

    def __init__(self, proxy: Mitmdump, *, window: int = 65535, greedy: bool = True, receive: int = 0) -> None:
        plain = socket.socket()
        if receive:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        plain.settimeout(PATIENCE)
        plain.connect(("127.0.0.1", proxy.port))
        context = ssl.create_default_context(cafile=str(proxy.ca))
        context.set_alpn_protocols(["h2"])
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.greedy = greedy
        self.events: list[h2.events.Event] = []
        self.state.local_settings.initial_window_size = window
        self.state.local_settings.acknowledge()  # else the old value is announced
        self.state.initiate_connection()
        self.send()
        self.until(lambda event: isinstance(event, h2.events.SettingsAcknowledged))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def head(self, *, end: bool = False, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> int:
        """Begin a request; its stream."""
        stream = self.state.get_next_available_stream_id()
        fields = {
            ":method": method,
            ":scheme": "https",
            ":authority": "localhost",
            ":path": path,
            "authorization": "Bearer azure-key-0123456789abcdef",
        }
        fields |= {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        self.state.send_headers(stream, list(fields.items()), end_stream=end)
        return stream

    def post(self, body: bytes, path: str = "/v1/chat/completions") -> int:
        stream = self.head(path=path)
        self.state.send_data(stream, body, end_stream=True)
        return stream

    def send(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def receive(self) -> bool:
        """Read once. False: the connection is closed."""
        data = self.socket.recv(1 << 16)
        for event in self.state.receive_data(data) if data else ():
            if isinstance(event, h2.events.DataReceived) and self.greedy:
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.events.append(event)
        self.send()
        return bool(data)

    def until(self, wanted: Callable[[h2.events.Event], object]) -> h2.events.Event:
        """The first event of this kind, of those that came and are coming."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if wanted(event):
                    return event
            seen = len(self.events)
            assert self.receive(), f"closed; there were {self.events}"

    def of(self, stream: int) -> list[h2.events.Event]:
        return [event for event in self.events if getattr(event, "stream_id", None) == stream]

    def body(self, stream: int) -> bytes:
        return b"".join(event.data or b"" for event in self.of(stream) if isinstance(event, h2.events.DataReceived))

    def ended(self, stream: int) -> h2.events.Event:
        """Wait for the end of a response."""
        return self.until(lambda event: isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) and event.stream_id == stream)
