"""TLS to upstream: what mitmproxy's options make of it, and one connection's state, without sockets."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import certifi
import pytest
from mitmproxy.options import Options
from mitmproxy.test import taddons

from azure_openai_proxy.egress.tls import Tls, TlsOptions, _context, context, reason, refuses_client
from azure_simulator import tls as certificates

if TYPE_CHECKING:
    from pathlib import Path


class Authority(NamedTuple):
    ca: Path
    server: ssl.SSLContext
    pem: Path
    """A key and a certificate of it."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    ca, server = certificates.make(tmp_path, ["upstream.example", "127.0.0.1"])
    return Authority(ca, server, tmp_path / "server.pem")


@pytest.fixture(autouse=True)
def _no_contexts() -> None:
    _context.cache_clear()


def options(authority: Authority, **more: object) -> TlsOptions:
    return TlsOptions(ca_file=str(authority.ca))._replace(**more)  # type: ignore[arg-type]


class Server:
    """The other side, in memory."""

    def __init__(self, made: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = made.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self, data: bytes) -> bytes:
        self._incoming.write(data)
        with suppress(ssl.SSLWantReadError):
            self.object.do_handshake()
        return self._outgoing.read()

    def read(self, data: bytes) -> bytes:
        self._incoming.write(data)
        return self.object.read(1 << 20)

    def write(self, data: bytes) -> bytes:
        self.object.write(data)
        return self._outgoing.read()

    def close(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.object.unwrap()
        return self._outgoing.read()


def connected(
    made: ssl.SSLContext, server: ssl.SSLContext, host: str = "upstream.example", session: ssl.SSLSession | None = None
) -> tuple[Tls, Server]:
    """Both sides, after their handshake."""
    tls, other = Tls(made, host, session), Server(server)
    done = tls.handshake()
    while not done:
        done = tls.handshake(other.handshake(tls.take()))
    if left := other.handshake(tls.take()):
        assert b"" == tls.receive(left)  # session tickets
    return tls, other


def test_defaults_are_mitmproxys() -> None:
    """What mitmproxy uses if nothing is said: certifi's authorities, TLS 1.2 and later."""
    with taddons.context() as tctx:
        tctx.options.add_option("tls_version_server_min", str, "TLS1_2", "")
        tctx.options.add_option("tls_version_server_max", str, "UNBOUNDED", "")
        tctx.options.add_option("ciphers_server", str, "", "")
        tctx.options.add_option("tls_ecdh_curve_server", str, "", "")
        found = TlsOptions.of(tctx.options)
    assert TlsOptions(ciphers="", curve="") == found
    made = context(found, "azure")
    assert ssl.CERT_REQUIRED is made.verify_mode
    assert made.check_hostname
    trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusted.load_verify_locations(certifi.where())
    assert trusted.cert_store_stats() == made.cert_store_stats()
    assert ssl.TLSVersion.TLSv1_2 is made.minimum_version


def test_options_are_read() -> None:
    """Each of mitmproxy's options for upstream has its place."""
    given = Options(
        ssl_insecure=True, ssl_verify_upstream_trusted_ca="ca.pem", ssl_verify_upstream_trusted_confdir="certs", client_certs="client.pem"
    )
    for name, value in (
        ("tls_version_server_min", "TLS1"),
        ("tls_version_server_max", "TLS1_3"),
        ("ciphers_server", "AES"),
        ("tls_ecdh_curve_server", "x"),
    ):
        given.add_option(name, str, value, "")
    assert TlsOptions(True, "ca.pem", "certs", "client.pem", "TLS1", "TLS1_3", "AES", "x") == TlsOptions.of(given)


def test_a_context_is_made_once(authority: Authority) -> None:
    """Hosts share it, unless they have certificates of their own."""
    assert context(options(authority), "a") is context(options(authority), "b")
    (authority.ca.parent / "a.pem").write_bytes(authority.pem.read_bytes())
    own = options(authority, client_certs=str(authority.ca.parent))
    assert context(own, "a") is not context(own, "b")
    assert context(own, "c") is context(own, "b")


def test_bytes_go_both_ways(authority: Authority) -> None:
    """Large ones too; the end is distinguishable from data to come."""
    tls, server = connected(context(options(authority), "upstream.example"), authority.server)
    assert b"request" == server.read(tls.send(b"request"))
    large = bytes(range(256)) * 1024
    assert large == tls.receive(server.write(large))
    assert b"" == tls.receive(server.write(b"x")[:3])
    assert b"" == tls.send(b"")
    assert not tls.closed
    assert b"" == tls.take()


def test_a_large_body_is_sent(authority: Authority) -> None:
    """In as many records as it takes."""
    tls, server = connected(context(options(authority), "upstream.example"), authority.server)
    sent = tls.send(b"x" * 100_000)
    got = server.read(sent)
    while len(got) < 100_000:
        got += server.read(b"")
    assert b"x" * 100_000 == got


def test_the_peer_closes_in_an_orderly_way(authority: Authority) -> None:
    """The data before the end is returned with it; then this side may close too, and receives the end again."""
    tls, server = connected(context(options(authority), "upstream.example"), authority.server)
    assert b"last" == tls.receive(server.write(b"last") + server.close())
    assert tls.closed
    assert tls.error is None
    assert tls.close()
    tls.closed = False
    assert b"" == tls.receive(b"")
    assert tls.closed


def test_this_side_closes(authority: Authority) -> None:
    """The peer receives the end, and this side does not wait for the peer's."""
    tls, server = connected(context(options(authority), "upstream.example"), authority.server)
    assert b"" == server.read(tls.close())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed(authority: Authority, version: ssl.TLSVersion) -> None:
    """With the session of a connection before it a handshake is shorter, in TLS 1.2 and 1.3."""
    authority.server.maximum_version = version
    made = context(options(authority), "upstream.example")
    first, _ = connected(made, authority.server)
    assert not first.object.session_reused
    second, _ = connected(made, authority.server, session=first.object.session)
    assert second.object.session_reused


@pytest.mark.parametrize(
    ("host", "trusted", "says"),
    [
        ("upstream.example", False, "certificate verify failed: unable to get local issuer certificate"),
        ("other.example", True, "certificate verify failed: Hostname mismatch, certificate is not valid for 'other.example'."),
        ("127.0.0.2", True, "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.2'."),
    ],
)
def test_certificates_are_verified(authority: Authority, host: str, trusted: bool, says: str) -> None:
    """One that is not to be trusted, or another host's, ends the handshake; the peer gets an alert, and the log a cause."""
    made = context(options(authority) if trusted else TlsOptions(), host)
    with pytest.raises(ssl.SSLError) as failed:
        connected(made, authority.server, host)
    assert says == reason(failed.value)
    tls, _ = connected(context(options(authority, insecure=True), host), authority.server, host)
    assert tls.object.cipher()


def test_a_folder_of_authorities(authority: Authority, tmp_path: Path) -> None:
    """`ssl_verify_upstream_trusted_confdir` alone is enough, and excludes certifi's."""
    made = context(TlsOptions(ca_folder=str(tmp_path)), "upstream.example")
    assert 0 == made.cert_store_stats()["x509"]
    with pytest.raises(ssl.SSLCertVerificationError):
        connected(made, authority.server)


def test_versions(authority: Authority) -> None:
    """The highest that is allowed on both sides is spoken; none in common is a failure with a name."""
    tls, _ = connected(context(options(authority, maximum="TLS1_2"), "upstream.example"), authority.server)
    assert "TLSv1.2" == tls.object.version()
    authority.server.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError) as failed:
        connected(context(options(authority, minimum="TLS1_3"), "upstream.example"), authority.server)
    assert reason(failed.value) in ("unsupported protocol", "tlsv1 alert protocol version")


def test_old_versions(authority: Authority) -> None:
    """TLS 1.0 needs ciphers that OpenSSL leaves out by default."""
    made = context(options(authority, minimum="TLS1"), "upstream.example")
    assert {cipher["protocol"] for cipher in made.get_ciphers()} >= {"TLSv1.0"}
    chosen = context(options(authority, minimum="UNBOUNDED", ciphers="ECDHE-ECDSA-AES256-GCM-SHA384"), "upstream.example")
    assert {cipher["name"] for cipher in chosen.get_ciphers() if cipher["protocol"] != "TLSv1.3"} == {"ECDHE-ECDSA-AES256-GCM-SHA384"}


def test_ciphers(authority: Authority) -> None:
    """`ciphers_server` chooses; a name that OpenSSL does not know is an OSError."""
    made = context(options(authority, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384", maximum="TLS1_2"), "upstream.example")
    tls, _ = connected(made, authority.server)
    cipher = tls.object.cipher()
    assert cipher
    assert "ECDHE-ECDSA-AES256-GCM-SHA384" == cipher[0]
    with pytest.raises(ssl.SSLError):
        context(options(authority, ciphers="nonsense"), "upstream.example")


@pytest.mark.parametrize("curve", ["secp384r1", "secp256r1", "prime256v1"])
def test_curves(authority: Authority, curve: str) -> None:
    """`tls_ecdh_curve_server` by OpenSSL's name or by mitmproxy's; a server without it is refused."""
    made = context(options(authority, curve=curve), "upstream.example")
    authority.server.set_ecdh_curve({"secp256r1": "prime256v1"}.get(curve, curve))
    connected(made, authority.server)
    authority.server.set_ecdh_curve("secp521r1")
    with pytest.raises(ssl.SSLError):
        connected(made, authority.server)


def test_a_curve_that_does_not_exist(authority: Authority) -> None:
    """It is an OSError as any other option that OpenSSL does not know."""
    with pytest.raises(OSError, match="unknown elliptic curve name 'nonsense'"):
        context(options(authority, curve="nonsense"), "upstream.example")


def test_keys_are_logged(authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SSLKEYLOGFILE, or mitmproxy's own variable before it, names the file."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "python.log"))
    connected(context(options(authority), "upstream.example"), authority.server)
    assert "CLIENT_TRAFFIC_SECRET_0" in (tmp_path / "python.log").read_text()
    _context.cache_clear()
    monkeypatch.setenv("MITMPROXY_SSLKEYLOGFILE", str(tmp_path / "mitmproxy.log"))
    connected(context(options(authority), "upstream.example"), authority.server)
    assert "CLIENT_TRAFFIC_SECRET_0" in (tmp_path / "mitmproxy.log").read_text()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates(authority: Authority, version: ssl.TLSVersion) -> None:
    """From a file, or from the file of the host in a folder; no other host's is sent."""
    authority.server.load_verify_locations(authority.ca)
    authority.server.verify_mode = ssl.CERT_OPTIONAL
    authority.server.maximum_version = version
    folder = authority.ca.parent
    (folder / "upstream.example.pem").write_bytes(authority.pem.read_bytes())
    for configured, sent in ((authority.pem, True), (folder, True), (None, False)):
        made = context(options(authority, client_certs=configured and str(configured)), "upstream.example")
        _, server = connected(made, authority.server)
        assert sent is (server.object.getpeercert(binary_form=True) is not None)
    _, server = connected(context(options(authority, client_certs=str(folder)), "127.0.0.1"), authority.server, "127.0.0.1")
    assert server.object.getpeercert(binary_form=True) is None


def test_a_client_certificate_that_is_not_there(authority: Authority) -> None:
    """It is said so, instead of going without."""
    with pytest.raises(FileNotFoundError):
        context(options(authority, client_certs="~/nowhere.pem"), "upstream.example")


def test_a_client_certificate_is_wanted(authority: Authority) -> None:
    """A TLS 1.3 server reports it after the handshake, as an alert among the data; the alert is recognised, with its name."""
    authority.server.load_verify_locations(authority.ca)
    authority.server.verify_mode = ssl.CERT_REQUIRED
    tls, server = Tls(context(options(authority), "upstream.example"), "upstream.example"), Server(authority.server)
    assert not tls.handshake()
    assert tls.handshake(server.handshake(tls.take()))
    with pytest.raises(ssl.SSLError):
        server.handshake(tls.take())
    assert b"" == tls.receive(server._outgoing.read())
    assert tls.error
    assert refuses_client(tls.error)
    assert "tlsv13 alert certificate required" == reason(tls.error)
    assert b"" == tls.close()


def test_an_alert_in_mid_connection(authority: Authority) -> None:
    """The data before it is returned; the alert is kept with its name, and is not the refusal of a certificate."""
    tls, server = connected(context(options(authority), "upstream.example"), authority.server)
    with pytest.raises(ssl.SSLError):
        server.read(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    alert = server._outgoing.read()
    assert b"" == tls.receive(alert)
    assert tls.error
    assert "alert bad record mac" in reason(tls.error)
    assert not refuses_client(tls.error)
    assert not tls.closed


def test_reasons() -> None:
    """Errors that are not OpenSSL's have their own text."""
    assert "no such file" == reason(OSError("no such file"))
    assert "ValueError" == reason(ValueError())
    assert "unknown curve" in reason(ssl.SSLError("unknown curve"))
    assert not refuses_client(ssl.SSLError("something"))
