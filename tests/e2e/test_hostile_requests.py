"""Hostile text in every place of every operation, through a real mitmdump, parsed strictly where Azure would be."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from support import hostile_requests as hostile
from support import operations
from support.hostile_requests import KEY, Case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Proxies
    from support.processes import Mitmdump

ROWS = [row for row in operations.rows() if row.handled_by == "azure"]
JSON = (b"content-type", b"application/json")
CHAT = b'{"model":"gpt-4o","messages":[]}'
AUTHORIZED = ((b"authorization", b"Bearer " + KEY.encode()), JSON)


@pytest.fixture(scope="module")
def wire() -> Iterator[hostile.Wire]:
    with hostile.Wire() as wire:
        yield wire


@pytest.fixture(params=["2024-10-21", "v1"])
def through(request: pytest.FixtureRequest, proxy: Proxies, wire: hostile.Wire) -> Mitmdump:
    """A mitmdump whose endpoint has a prefix, and that has no key of its own."""
    through = proxy(azure_openai_endpoint=wire.url, azure_openai_apiversion=request.param, azure_openai_model_mapper="gpt-4o=gpt-4o")
    wire.take()
    return through


def drawn(seed: int, count: int) -> list[Case]:
    """`count` cases of each operation: a different text and another place each."""
    chosen = random.Random(seed)
    texts = ((row, chosen.choice(hostile.TEXTS)) for row in ROWS for _ in range(count))
    return [chosen.choice(list(hostile.cases(row, text))) for row, text in texts]


def test_hostile_text_over_http1_shapes_no_request(through: Mitmdump, wire: hostile.Wire) -> None:
    """At most one request arrives for it, below the endpoint's prefix, with the key in its header."""
    sent = [case for case in map(Case.http1, drawn(1, 3)) if case]
    assert len(sent) > 100
    for case in sent:
        status = hostile.ask_http1(through.port, case)
        assert status < 500, case
        assert [] == hostile.faults(case, wire.take(), wire.host), case


def test_hostile_text_over_http2_shapes_no_request(through: Mitmdump, wire: hostile.Wire) -> None:
    """There a client can put line ends and spaces into the method, the path and every header."""
    for case in drawn(2, 3):
        (status,) = hostile.ask_http2(through.port, through.ca, [case])
        assert status < 500, case
        assert [] == hostile.faults(case, wire.take(), wire.host), case


WS = b"/openai/realtime?deployment=d&api-version=%b"
DATED = b"/openai/deployments/d/chat/completions?api-version=%b"
INJECTED = b"v%0d%0aX-Evil-Mark:%20y"


@pytest.mark.parametrize(
    "status, case",
    [
        (400, Case("api-version", b"POST", DATED % INJECTED, AUTHORIZED, CHAT)),
        (400, Case("api-version, v1", b"POST", b"/openai/v1/responses?api-version=" + INJECTED, AUTHORIZED, CHAT)),
        (400, Case("api-version, OpenAI's path", b"GET", b"/v1/files?api-version=" + INJECTED, AUTHORIZED)),
        (400, Case("api-version, a space", b"POST", DATED % b"2024-10-21%20HTTP/1.1", AUTHORIZED, CHAT)),
        (400, Case("api-version, another parameter", b"POST", DATED % b"2024-10-21%26a=b", AUTHORIZED, CHAT)),
        (401, Case("key in the query", b"POST", b"/v1/chat/completions?api-key=a%0d%0aX-Evil-Mark:1", (JSON,), CHAT)),
        (401, Case("key in a header", b"POST", b"/v1/chat/completions", ((b"authorization", b"Bearer abc\x01def"), JSON), CHAT)),
        (401, Case("api-key", b"POST", b"/v1/chat/completions", ((b"api-key", b"abc\x7fdef"), JSON), CHAT)),
        (401, Case("key with a space", b"POST", b"/v1/chat/completions", ((b"api-key", b"abc def"), JSON), CHAT)),
        (400, Case("gateway's key", b"POST", b"/v1/chat/completions", (*AUTHORIZED, (b"ocp-apim-subscription-key", b"a\x01b")), CHAT)),
        (400, Case("model of blanks", b"POST", b"/v1/chat/completions", AUTHORIZED, b'{"model":"  ","messages":[]}')),
        (400, Case("model with dots", b"POST", b"/v1/chat/completions", AUTHORIZED, b'{"model":"a/../../b","messages":[]}')),
        (405, Case("TRACE", b"TRACE", b"/v1/files", AUTHORIZED)),
        (405, Case("WS as a method", b"WS", b"/v1/realtime?model=d", AUTHORIZED)),
    ],
    ids=lambda value: value.place if isinstance(value, Case) else "",
)
def test_what_cannot_be_sent_is_refused(status: int, case: Case, through: Mitmdump, wire: hostile.Wire) -> None:
    """On HTTP/1.1 and HTTP/2, in OpenAI's shape, with nothing sent."""
    assert status == hostile.ask_http1(through.port, case)
    assert [status] == hostile.ask_http2(through.port, through.ca, [case])
    assert [] == wire.take()


@pytest.mark.parametrize(
    "status, target, protocols",
    [
        (400, WS % INJECTED, b"realtime"),
        (400, b"/v1/realtime/../../secret?model=d", b"realtime"),
        (401, b"/v1/realtime?model=d&api-key=a%0ab", b"realtime"),
        (401, b"/v1/realtime?model=d", b"realtime, openai-insecure-api-key.a\x01b"),
    ],
)
def test_an_upgrade_that_cannot_be_sent_is_refused(
    status: int, target: bytes, protocols: bytes, through: Mitmdump, wire: hostile.Wire
) -> None:
    """A WebSocket's path, api-version and key are checked as any request's."""
    headers = (*hostile.UPGRADE, (b"sec-websocket-protocol", protocols), *(AUTHORIZED if status == 400 else ()))
    assert status == hostile.ask_http1(through.port, Case("upgrade", b"GET", target, headers))
    assert [] == wire.take()


SPELLINGS = [
    b"../../../../team-b/secret",
    b"%2e%2e/%2e%2e/secret",
    b".%2E/secret",
    b"%252e%252e/secret",
    b"%25252e%25252e%25252fsecret",
    b"..%2fsecret",
    b"..%5csecret",
    b"..\\secret",
    b"a%5cb",
    b"..;/secret",
    b"..;a=b/secret",
    b"%2e%2e%3b/secret",
    b"%c0%ae%c0%ae/secret",
    b"%ef%bc%8e%ef%bc%8e/secret",
    b"./secret",
    b"a/..",
    b"a/..?after=b",
    b"a%00",
    b"a%0d%0ab",
    b"%zz",
    b"%",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_path_that_leads_elsewhere_is_refused(spelling: bytes, through: Mitmdump, wire: hostile.Wire) -> None:
    """In every spelling of `..`, in OpenAI's path and in both of Azure's, on HTTP/1.1 and HTTP/2; nothing is sent."""
    for start in (b"/v1/files/", b"/openai/files/", b"/openai/v1/files/", b"/openai/deployments/", b"/v1/engines/", b"/v1/threads/t/runs/"):
        case = Case("path", b"GET", start + spelling, AUTHORIZED)
        assert hostile.ask_http1(through.port, case) in (400, 404), case
        assert hostile.ask_http2(through.port, through.ca, [case])[0] in (400, 404), case
    assert [] == wire.take()


@pytest.mark.parametrize(
    "name", [b"file-abc_1.2~", b"ft:gpt-4o:org::id", b"a%20b", b"%C3%A9", b"50%25", b"org%2Fname", b"...a", b"a;b", b"a=b,c@d"]
)
def test_an_id_of_other_characters_is_sent_as_it_came(name: bytes, through: Mitmdump, wire: hostile.Wire) -> None:
    """Only what leads elsewhere is refused."""
    for ask in (hostile.ask_http1, lambda port, case: hostile.ask_http2(port, through.ca, [case])[0]):
        assert 200 == ask(through.port, Case("id", b"GET", b"/v1/files/" + name, AUTHORIZED))
        (request,) = wire.take()
        assert name == request.line.split()[1].partition(b"?")[0].rpartition(b"/")[2]


@pytest.mark.parametrize(
    "method, target",
    [
        (b"GET /secret HTTP/1.1\r\nX-Evil-Mark:", b"/v1/files"),
        (b"GET /secret", b"/v1/files"),
        (b"GET\x0b", b"/v1/files"),
        (b"G\xc3\x89T", b"/v1/files"),
        (b"GET", b"/v1/files HTTP/1.1\r\nX-Evil-Mark: y"),
        (b"GET", b"/v1/files a"),
        (b"GET", b"/v1/files?a=b c"),
        (b"GET", b"/v1/files?a=b\tc"),
    ],
)
@pytest.mark.parametrize("mode", ["azure", "openai"])
def test_a_space_in_a_pseudo_header_is_refused(method: bytes, target: bytes, mode: str, proxy: Proxies, wire: hostile.Wire) -> None:
    """HTTP/2 can carry it, and HTTP/1.1 would make another request line of it."""
    through = proxy(azure_openai_endpoint=wire.url, azure_openai_passthrough_endpoint=wire.url, azure_openai_proxy_mode=mode)
    wire.take()
    (status,) = hostile.ask_http2(through.port, through.ca, [Case("pseudo", method, target, AUTHORIZED)])
    assert status in (0, 400)
    assert [] == wire.take()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_path_that_leads_elsewhere_is_refused_in_openai_mode(spelling: bytes, proxy: Proxies, wire: hostile.Wire) -> None:
    """Where requests are not translated, the endpoint's prefix holds too."""
    through = proxy(azure_openai_endpoint=wire.url, azure_openai_passthrough_endpoint=wire.url, azure_openai_proxy_mode="openai")
    wire.take()
    case = Case("path", b"GET", b"/v1/files/" + spelling, AUTHORIZED)
    assert 400 == hostile.ask_http1(through.port, case)
    assert [400] == hostile.ask_http2(through.port, through.ca, [case])
    assert [] == wire.take()
    assert 200 == hostile.ask_http1(through.port, case._replace(target=b"/v1/files/a%20b?after=%5C"))
    assert [b"GET /apim/team-a/v1/files/a%20b?after=%5C HTTP/1.1"] == [request.line for request in wire.take()]
