"""The proxy relays to no private network, and the key is sent to Azure only. Each attempt here is refused."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, ResponseReceived, StreamReset

from azure_simulator import Simulator, refusals
from azure_simulator.answers import Answer
from support.curl import Curl
from support.processes import PATIENCE, RECORDER, Decoy, Mitmdump
from support.renamed import copy_package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator.calls import Call
    from conftest import Proxies

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")

OWNER_S: dict[str, Any] = {"azure_openai_token": "azure-key-0123456789abcdef"}  # the simulator's
CLIENT_S = "sk-the-client-s-own"
CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})


def own_address() -> str | None:
    """An address of this machine that is not loopback: who comes from there is not local."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith(("127.", "0.")) else address


ADDRESS = own_address() or ""
remote = pytest.mark.skipif(not ADDRESS, reason="this machine has no address but loopback")


class Listener:
    """Accepts a connection and records the received bytes."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.accepted, self.received = threading.Event(), b""
        self._socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        self.accepted.set()
        with connection:
            while more := connection.recv(65536):
                self.received += more

    def close(self) -> bytes:
        """The bytes received until the other side closed."""
        if not self.accepted.is_set():
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._socket.close()
        return self.received


@pytest.fixture
def inside() -> Iterator[Decoy]:
    """A service on this machine's loopback address that clients must not reach."""
    decoy = Decoy()
    yield decoy
    decoy.close()


def everywhere(proxy: Proxies, mode: str = "regular", **options: Any) -> Mitmdump:
    """A proxy that can be reached from outside."""
    through = proxy("--mode", mode, listen_host="0.0.0.0", block_global="false", **options)
    through.forget()
    return through


def ways(proxy: Mitmdump, at: str) -> dict[str, Curl]:
    return {
        "plain": Curl(["--proxy", f"http://{at}:{proxy.port}"]),
        "CONNECT": Curl(["--proxy", f"http://{at}:{proxy.port}", "--proxytunnel"]),
    }


# What a client may write for this machine's loopback, and for the metadata of a cloud.
LOOPBACK = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "inside.example",
]
METADATA = ["169.254.169.254", "2852039166", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16", "[fe80::1]", "metadata.example"]
NAMES = {"RECORDER_HOSTS": json.dumps({"inside.example": ["127.0.0.1"], "metadata.example": ["169.254.169.254"]})}


def asked_raw(at: tuple[str, int], host: str, port: int, way: str) -> bytes:
    """The status line that the proxy gives; curl would rewrite some of these addresses before it asks."""
    line = f"CONNECT {host}:{port} HTTP/1.1" if way == "CONNECT" else f"GET http://{host}:{port}/latest HTTP/1.1"
    with socket.create_connection(at, PATIENCE) as connection:
        connection.sendall(f"{line}\r\nHost: {host}:{port}\r\n\r\n".encode())
        return connection.recv(65536).partition(b"\r\n")[0]


@remote
@pytest.mark.parametrize("way", ["plain", "CONNECT"])
@pytest.mark.parametrize("host", [*LOOPBACK, *METADATA, pytest.param(ADDRESS, id="the machine's own")])
def test_a_client_from_elsewhere_gets_nowhere_inside(host: str, way: str, inside: Decoy, proxy: Proxies) -> None:
    """However the address is written, plain or by CONNECT: 403, and no connection is tried."""
    through = everywhere(proxy, env=NAMES)

    assert b"HTTP/1.1 403 Forbidden" == asked_raw((ADDRESS, through.port), host, inside.port, way)

    assert ([], 0) == (through.connections, inside.accepted)


@remote
@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "localhost", "inside.example", "169.254.169.254"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nor_by_socks(scheme: str, host: str, inside: Decoy, proxy: Proxies) -> None:
    """SOCKS has no 403: the connection ends."""
    through = everywhere(proxy, "socks5", env=NAMES)

    answer = Curl(["--proxy", f"socks5h://{ADDRESS}:{through.port}", "-k"])(f"{scheme}://{host}:{inside.port}/")

    assert answer.status in (0, 403)
    assert ([], 0) == (through.connections, inside.accepted)


@remote
def test_nor_behind_another_proxy(inside: Decoy, proxy: Proxies) -> None:
    """That proxy would connect for us: it is not asked."""
    other = Decoy()
    through = everywhere(proxy, f"upstream:http://127.0.0.1:{other.port}")

    for way in ("plain", "CONNECT"):
        assert b"HTTP/1.1 403 Forbidden" == asked_raw((ADDRESS, through.port), "169.254.169.254", 80, way)

    other.close()
    assert 0 == other.accepted


class OtherProxy:
    """The upstream proxy: it accepts every CONNECT, and records the requested targets."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                self.asked.append(line)
                if line == b"\r\n":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def other() -> Iterator[OtherProxy]:
    proxy = OtherProxy()
    yield proxy
    proxy.close()


def sent(at: tuple[str, int], *parts: bytes) -> bytes:
    """The received bytes, if each part is sent after the response to the previous one."""
    received = b""
    with socket.create_connection(at, PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
            received += connection.recv(65536)
    return received


HEADERS_FOR_ANOTHER = {
    "CONNECT": b"CONNECT 169.254.169.254:22 HTTP/1.1\r\nHost: mitm.it\r\n\r\n",
    "CONNECT, an API host": b"CONNECT 169.254.169.254:22 HTTP/1.1\r\nHost: api.openai.com\r\n\r\n",
    "plain": b"GET http://169.254.169.254:22/ HTTP/1.1\r\nHost: mitm.it\r\n\r\n",
    "plain, an API host": b"GET http://169.254.169.254:22/ HTTP/1.1\r\nHost: api.openai.com\r\n\r\n",
    "a body": b"POST http://169.254.169.254/ HTTP/1.1\r\nHost: mitm.it\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("mode", ["upstream", "regular"])
@pytest.mark.parametrize("sending", HEADERS_FOR_ANOTHER.values(), ids=HEADERS_FOR_ANOTHER)
def test_a_host_header_is_not_the_destination(sending: bytes, mode: str, other: OtherProxy, proxy: Proxies) -> None:
    """The guard judges the host of the request line, whatever the Host header names."""
    name = f"upstream:http://127.0.0.1:{other.port}" if mode == "upstream" else mode
    through = proxy("--mode", name, azure_openai_allowed_destinations="off")

    assert sent(("127.0.0.1", through.port), sending).startswith(b"HTTP/1.1 403 ")

    assert ([], []) == (other.asked, through.connections)


def http2_status(port: int, fields: list[tuple[str, str]]) -> bytes:
    """`:status` of the answer to this HTTP/2 request head, by TLS to the proxy's own port; empty if the stream or connection is ended."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    h2 = H2Connection(H2Configuration(validate_outbound_headers=False))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw, context.wrap_socket(raw, server_hostname="localhost") as tls:
        h2.initiate_connection()
        h2.send_headers(1, fields)
        tls.sendall(h2.data_to_send())
        while received := tls.recv(65536):
            for event in h2.receive_data(received):
                if isinstance(event, ResponseReceived):
                    return dict(event.headers)[b":status"]
                if isinstance(event, StreamReset | ConnectionTerminated):
                    return b""
            tls.sendall(h2.data_to_send())
    return b""


TARGET = [(":scheme", "http"), (":path", "/")]


@pytest.mark.parametrize("mode", ["upstream", "regular"])
@pytest.mark.parametrize("header", ["mitm.it", "api.openai.com"])
@pytest.mark.parametrize("more", [[], TARGET], ids=["as the standard has it", "with a path"])
def test_nor_in_http2(more: list[tuple[str, str]], header: str, mode: str, other: OtherProxy, proxy: Proxies) -> None:
    """The same for a CONNECT in HTTP/2, whose destination is its :authority."""
    name = f"upstream:http://127.0.0.1:{other.port}" if mode == "upstream" else mode
    through = proxy("--mode", name, azure_openai_allowed_destinations="off")

    status = http2_status(through.port, [(":method", "CONNECT"), *more, (":authority", "169.254.169.254:22"), ("host", header)])

    assert status in (b"403", b"400", b"")
    assert ([], []) == (other.asked, through.connections)


@remote
@pytest.mark.parametrize("host", ["metadata.google.invalid", "127.0.0.1.", "0127.0.0.1", "134744072"])
def test_a_name_that_cannot_be_judged_is_refused_by_socks(host: str, proxy: Proxies) -> None:
    """No connection is tried."""
    through = everywhere(proxy, "socks5")

    answer = Curl(["--proxy", f"socks5h://{ADDRESS}:{through.port}"])("http://name.invalid:8000/", "--connect-to", f"::{host}:")

    assert answer.status in (0, 403)
    assert [] == through.connections


def test_an_api_host_on_another_port_is_no_tunnel(other: OtherProxy, proxy: Proxies) -> None:
    """A CONNECT to an API host is accepted, for the API inside it; bytes of another protocol do not reach the other proxy."""
    through = proxy("--mode", f"upstream:http://127.0.0.1:{other.port}", azure_openai_allowed_destinations="off")
    tunnel = b"CONNECT api.openai.com:22 HTTP/1.1\r\nHost: api.openai.com:22\r\n\r\n"

    received = sent(("127.0.0.1", through.port), tunnel, b"SSH-2.0-client\r\n")

    assert received.startswith(b"HTTP/1.1 200 ")
    assert [] == other.asked
    through.wait_for_log("azure_openai_allowed_destinations is off")  # the log may arrive after the end of the connection


UNJUDGED = [
    "metadata.google.invalid",
    "127.0.0.1.",
    "0127.0.0.1",
    "134744072",
    "0x08.8.8.8",
    "[2606:4700::1111%25lo]",
    "8.8.8.8%00.example",
]


@remote
@pytest.mark.parametrize("way", ["plain", "CONNECT"])
@pytest.mark.parametrize("host", UNJUDGED)
def test_a_name_that_cannot_be_judged_is_refused(host: str, way: str, other: OtherProxy, proxy: Proxies) -> None:
    """The other proxy may resolve what this machine cannot, or read a number in its own way: it is not asked."""
    through = everywhere(proxy, f"upstream:http://127.0.0.1:{other.port}")

    assert asked_raw((ADDRESS, through.port), host, 80, way)[:13] in (b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")

    assert [] == other.asked


@remote
def test_public_names_are_reached_behind_another_proxy(other: OtherProxy, proxy: Proxies) -> None:
    """Public names are reachable, plain and by CONNECT."""
    names = {"RECORDER_HOSTS": json.dumps({"public.example": ["198.20.0.1"]})}
    through = everywhere(proxy, f"upstream:http://127.0.0.1:{other.port}", env=names)
    tunnel = b"CONNECT public.example:80 HTTP/1.1\r\nHost: public.example:80\r\n\r\n"
    plain = b"GET http://public.example/plain HTTP/1.1\r\nHost: public.example\r\n\r\n"

    assert sent((ADDRESS, through.port), plain).startswith(b"HTTP/1.1 200 ")
    received = sent((ADDRESS, through.port), tunnel, b"GET /inside HTTP/1.1\r\nHost: public.example\r\n\r\n")

    assert 2 == received.count(b"HTTP/1.1 200 ")
    assert [b"CONNECT public.example:80 HTTP/1.1\r\n"] == [line for line in other.asked if line.startswith(b"CONNECT")]


@remote
@pytest.mark.parametrize("way", ["plain", "CONNECT"])
def test_the_backend_is_reached_as_azure_only(way: str, azure: Simulator, proxy: Proxies) -> None:
    """A backend on loopback serves clients from elsewhere through the API, and is no door for them."""
    through = everywhere(proxy, **OWNER_S)
    port = int(azure.http_url.rpartition(":")[2])

    assert b"HTTP/1.1 403 Forbidden" == asked_raw((ADDRESS, through.port), "127.0.0.1", port, way)
    assert [] == azure.requests
    asked = Curl()("-d", CHAT, "-H", "Content-Type: application/json", f"http://{ADDRESS}:{through.port}/v1/chat/completions")
    assert 200 == asked.status


@remote
def test_nor_is_it_by_socks(azure: Simulator, proxy: Proxies) -> None:
    """The same where no request tells what it wants before the connection is made."""
    through = everywhere(proxy, "socks5", **OWNER_S)

    answer = Curl(["--proxy", f"socks5h://{ADDRESS}:{through.port}"])(f"{azure.http_url}/openai/models")

    assert answer.status in (0, 403, 502)
    assert [] == azure.requests


@remote
@pytest.mark.parametrize("way", ["plain", "CONNECT"])
def test_a_name_that_changes_its_mind(way: str, proxy: Proxies) -> None:
    """A name that is public when it is judged and private when it is connected to: the connection carries no byte."""
    listener = Listener()
    public = ["198.20.0.1"] * 2
    through = everywhere(proxy, env={"RECORDER_HOSTS": json.dumps({"rebinding.example": [*public, "127.0.0.1"]}), "RUN": way})
    scheme = "https" if way == "CONNECT" else "http"

    answer = ways(through, ADDRESS)[way]("-k", f"{scheme}://rebinding.example:{listener.port}/")

    assert listener.accepted.wait(PATIENCE)
    assert (b"", 200) != (listener.close(), answer.status)
    assert b"" == listener.received
    through.wait_for_log("was cut off")


@remote
def test_nor_where_mitmproxy_differs(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """If the connection cannot be closed, because mitmproxy has renamed its list of them, it carries no byte either."""
    renamed = copy_package("mitmproxy", "transports", tmp_path / "packages")
    assert renamed
    listener = Listener()
    hosts = json.dumps({"rebinding.example": ["198.20.0.1", "198.20.0.1", "127.0.0.1"]})
    through = Mitmdump(
        tmp_path / "home",
        confdir,
        options={"listen_host": "0.0.0.0", "block_global": "false", "azure_openai_endpoint": azure.http_url},
        env={"RECORDER_HOSTS": hosts, "PYTHONPATH": f"{RECORDER}:{tmp_path / 'packages'}"},
    ).start()
    try:
        answer = ways(through, ADDRESS)["CONNECT"]("-k", "--max-time", "2", f"https://rebinding.example:{listener.port}/")
        assert listener.accepted.wait(PATIENCE)
        through.wait_for_log("was cut off")
    finally:
        through.stop()
    assert (b"", True) == (listener.close(), answer.status != 200)
    assert "is abandoned" in through.log()


def test_a_client_of_this_machine_may(inside: Decoy, proxy: Proxies) -> None:
    """It could connect by itself."""
    through = everywhere(proxy)

    assert b"HTTP/1.1 502 Bad Gateway" == asked_raw(("127.0.0.1", through.port), "127.0.0.1", inside.port, "plain")

    assert 1 == inside.accepted


@pytest.mark.parametrize("relay, host", [("public", "127.0.0.1"), ("off", "127.0.0.1"), ("off", "198.20.0.1")])
@pytest.mark.parametrize("way", ["plain", "CONNECT"])
def test_unless_the_owner_says_otherwise(way: str, relay: str, host: str, inside: Decoy, proxy: Proxies) -> None:
    """`public` is for a balancer on the same machine, where all clients look local; `off` is for a gateway that is nothing else."""
    through = proxy(azure_openai_allowed_destinations=relay)

    assert b"HTTP/1.1 403 Forbidden" == asked_raw(("127.0.0.1", through.port), host, inside.port, way)

    assert ([], 0) == (through.connections, inside.accepted)


@remote
def test_any_is_any(inside: Decoy, proxy: Proxies) -> None:
    """Who wants an open relay can have one."""
    through = everywhere(proxy, azure_openai_allowed_destinations="any")

    assert b"HTTP/1.1 502 Bad Gateway" == asked_raw((ADDRESS, through.port), "127.0.0.1", inside.port, "plain")

    assert 1 == inside.accepted


# The key


class Attempt(NamedTuple):
    """A request head that would have the proxy send the key to `evil`."""

    target: str
    host: str
    more: str = ""


ATTEMPTS = {
    "Host": Attempt("/v1/chat/completions", "{evil}"),
    "absolute URI": Attempt("http://{evil}/v1/chat/completions", "api.openai.com"),
    "absolute URI, backend as Host": Attempt("http://{evil}/v1/chat/completions", "{azure}"),
    "X-Forwarded-Host": Attempt("/v1/chat/completions", "localhost", "X-Forwarded-Host: {evil}\r\nX-Forwarded-Server: {evil}\r\n"),
    "Forwarded": Attempt("/v1/chat/completions", "localhost", "Forwarded: host={evil};proto=http\r\n"),
    "X-Original-URL": Attempt("/v1/chat/completions", "localhost", "X-Original-URL: http://{evil}/\r\nX-Rewrite-URL: http://{evil}/\r\n"),
    "userinfo": Attempt("http://api.openai.com@{evil}/v1/chat/completions", "api.openai.com"),
    "userinfo with a password": Attempt("http://api.openai.com:80@{evil}/v1/chat/completions", "{evil}"),
    "userinfo in Host": Attempt("/v1/chat/completions", "api.openai.com@{evil}"),
    "two Hosts": Attempt("/v1/chat/completions", "localhost", "Host: {evil}\r\n"),
    "a path that begins with //": Attempt("//{evil}/v1/chat/completions", "localhost"),
    "a path that climbs": Attempt("/v1/../../{evil}/v1/chat/completions", "localhost"),
    "a path with a URL": Attempt("/v1/chat/completions/http://{evil}/", "localhost"),
    "a look-alike name": Attempt("http://\u0430pi.openai.com:{port}/v1/chat/completions", "\u0430pi.openai.com:{port}"),  # a Cyrillic a
    "a look-alike name, encoded": Attempt("http://xn--pi-7kc.openai.com:{port}/v1/chat/completions", "xn--pi-7kc.openai.com:{port}"),
    "a name below": Attempt("http://api.openai.com.evil.example:{port}/v1/chat/completions", "api.openai.com.evil.example:{port}"),
    "a deployment that climbs": Attempt("/openai/deployments/..%2f..%2f@{evil}/chat/completions", "localhost"),
}
EVIL_NAMES = ["xn--pi-7kc.openai.com", "\u0430pi.openai.com", "api.openai.com.evil.example"]


@pytest.fixture
def evil() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_the_key_goes_to_azure_alone(attempt: Attempt, azure: Simulator, evil: Simulator, proxy: Proxies) -> None:
    """Nothing in a request makes the proxy send the configured key anywhere else."""
    through = proxy(**OWNER_S, env={"RECORDER_HOSTS": json.dumps({name: ["127.0.0.1"] for name in EVIL_NAMES})})
    at = evil.http_url.removeprefix("http://")
    fill = {"evil": at, "port": at.rpartition(":")[2], "azure": azure.http_url.removeprefix("http://")}
    target, host, more = (part.format(**fill) for part in attempt)
    head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\n{more}Authorization: Bearer {CLIENT_S}\r\nContent-Type: application/json\r\n"

    with socket.create_connection(("127.0.0.1", through.port), PATIENCE) as connection:
        connection.sendall(f"{head}Content-Length: {len(CHAT)}\r\nConnection: close\r\n\r\n{CHAT}".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 ")
    assert {azure.key} >= {request.header("api-key") for request in azure.requests}
    assert [] == [request for request in evil.requests if azure.key in str(request.headers) or azure.key in request.path]
    assert azure.key not in answer.decode()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, azure: Simulator, evil: Simulator, proxy: Proxies) -> None:
    """Where Azure sends a client is the client's affair: the proxy goes nowhere."""

    def redirect(answer: Answer, _: Call) -> Answer:
        return Answer(status, (), {"location": f"{evil.http_url}/v1/chat/completions"})

    azure.faults.next(redirect)
    through = proxy(**OWNER_S)

    answer = httpx.post(
        f"{through.url}/v1/chat/completions", content=CHAT, headers={"content-type": "application/json"}, timeout=PATIENCE, trust_env=False
    )

    assert status == answer.status_code
    assert [] == evil.requests
    assert azure.key not in str(answer.headers)


@pytest.mark.parametrize("status", [302, 307])
def test_nor_by_the_proxy_s_own_request(status: int, azure: Simulator, evil: Simulator, tmp_path: Path, confdir: Path) -> None:
    """The list of deployments is requested with the key: a redirect is a failure, logged once, and no other host gets a request."""
    azure.faults.always(lambda *_: Answer(status, (), {"location": f"{evil.http_url}/openai/deployments"}))
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_discover_models": True} | OWNER_S

    with Mitmdump(tmp_path, confdir, options=options) as through:
        through.wait_for_log(f"cannot be listed .*{status}")

    assert [] == evil.requests
    assert 1 == len(azure.requests)


def test_a_refusal_that_names_the_key(azure: Simulator, proxy: Proxies) -> None:
    """What Azure repeats of the key is masked."""
    azure.faults.next(refusals.echoing_key)
    through = proxy(**OWNER_S)

    answer = httpx.post(
        f"{through.url}/v1/chat/completions", content=CHAT, headers={"content-type": "application/json"}, timeout=PATIENCE, trust_env=False
    )

    assert 401 == answer.status_code
    assert azure.key not in answer.text


# Requests that are read in two ways

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = CHAT.encode()
SECOND = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNK = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"

SMUGGLED = {
    "CL.TE": POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + SECOND,
    "TE.CL": POST + CHUNKED + b"Content-Length: 4\r\n\r\n" + CHUNK + SECOND,
    "two lengths": POST + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY + SECOND,
    "two lengths in one": POST + b"Content-Length: %d, 0\r\n\r\n" % len(BODY) + BODY,
    "a signed length": POST + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a length in hex": POST + b"Content-Length: 0x%x\r\n\r\n" % len(BODY) + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "chunked twice": POST + CHUNKED + CHUNKED + b"\r\n" + CHUNK,
    "chunked and not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNK,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNK,
    "a coding behind a control character": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNK,
    "chunked in HTTP/1.0": (POST + CHUNKED + b"\r\n" + CHUNK).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a space before the colon": POST + b"Content-Length : %d\r\n\r\n" % len(BODY) + BODY,
    "a header over two lines": POST + LENGTH + b"X-Folded: one\r\n two\r\n\r\n" + BODY,
    "the length over two lines": POST + b"Content-Length:\r\n %d\r\n\r\n" % len(BODY) + BODY,
    "a chunk size that is none": POST + CHUNKED + b"\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a signed chunk size": POST + CHUNKED + b"\r\n+%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    "a chunk size with 0x": POST + CHUNKED + b"\r\n0x%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    "a chunk longer than it says": POST + CHUNKED + b"\r\n2\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a null in a header": POST + LENGTH + b"X: a\0b\r\n\r\n" + BODY,
    "a bare CR in a header": POST + LENGTH + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + BODY,
    "no colon": POST + LENGTH + b"nonsense\r\n\r\n" + BODY,
    "no version": POST.replace(b" HTTP/1.1", b"") + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED)
def test_a_request_that_is_read_in_two_ways(sent: bytes, azure: Simulator, proxy: Proxies) -> None:
    """It is refused, no part of it reaches Azure, and the bytes after it on the connection are not taken for a request."""
    through = proxy(**OWNER_S)

    with socket.create_connection(("127.0.0.1", through.port), PATIENCE) as connection:
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert b"HTTP/1.1 400 " == answer[:13]
    assert 1 == answer.count(b"HTTP/1.1 ")
    assert [] == azure.requests


# Warnings for the owner

WARNS = "uses the configured key"


@pytest.mark.parametrize(
    "options, warned",
    [
        ({"listen_host": "0.0.0.0", **OWNER_S}, True),
        ({"listen_host": None, **OWNER_S}, True),
        ({"listen_host": "::", **OWNER_S}, True),
        ({"listen_host": "0.0.0.0"}, False),
        ({"listen_host": "127.0.0.1", **OWNER_S}, False),
        ({"listen_host": "localhost", **OWNER_S}, False),
        ({"listen_host": "0.0.0.0", "proxyauth": "user:password", **OWNER_S}, False),
    ],
)
def test_an_owner_is_warned_whose_key_anybody_may_use(options: dict[str, Any], warned: bool, proxy: Proxies) -> None:
    """One line at startup, if the port is open to other machines and clients need no key."""
    through = proxy("--mode", "regular", **options, env={"FRESH": str(options)})

    if warned:
        through.wait_for_start_line(WARNS)
    assert warned == (WARNS in through.started)
