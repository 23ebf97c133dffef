"""The attempts of one request: the backend of each, and the reaction to each failure."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from mitmproxy import http

from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import Failure, NotFound, Unavailable
from azure_openai_proxy.routing import attempts as attempts_module
from azure_openai_proxy.routing.attempts import Attempts
from azure_openai_proxy.routing.decisions import GIVE_UP, Attempt, Plan, Respond, Retry
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.repair_changes import Change, Drop, Moved, Rename
from azure_openai_proxy.routing.state import Shared

A, B, C = (
    Backend(name=name, base=Base("https", name, 443), token="key", apiversion="v1", priority=index) for index, name in enumerate("abc")
)
REFUSED = Failure(502, "upstream_unreachable", "refused")
CLOSED = Failure(502, "upstream_error", "closed")
CHAT = {"model": "gpt-4o", "messages": []}
MAX_TOKENS = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


def shared() -> Shared:
    return Shared(Pool(lambda: 0.0, random.Random(1)))


def attempts(
    *backends: Backend,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: dict[str, Any] | str | None = None,
    of: Shared | None = None,
    more: bool = False,
    key: str = "",
    version: str = "",
    reads_usage: bool = False,
    **settings: Any,
) -> Attempts:
    content = (body if isinstance(body, str) else json.dumps(CHAT if body is None else body)).encode()
    call = operations.recognise(method, path, {"content-type": "application/json"}, content, wanted=operations.Wanted(()))
    assert call
    of = of or shared()
    of.use(backends or (A, B, C))
    return Attempts(
        Settings(backends=of.backends, **settings),
        of,
        call,
        ClientRequest(http.Headers(), Query("", version, key), content, more=more),
        reads_usage,
    )


def failing(status: int, message: str = "no", **headers: str) -> http.Response:
    return http.Response.make(
        status, json.dumps({"error": {"message": message}}), {name.replace("_", "-"): value for name, value in headers.items()}
    )


def asked(decision: object) -> str:
    plan = decision.plan if isinstance(decision, Retry) else decision
    assert isinstance(plan, Plan)
    return plan.target.backend.name


@pytest.mark.parametrize("what", [REFUSED, *map(failing, (401, 403, 404, 408, 429, 500, 502, 503, 504))], ids=lambda what: str(what)[:30])
def test_failover(what: Failure | http.Response) -> None:
    """A request fails over to the next backend after each failure that is specific to one backend."""
    asking = attempts()
    assert ("a", "b", "c") == (asked(asking.first()), asked(asking.next_attempt(what)), asked(asking.next_attempt(what)))
    assert not isinstance(asking.next_attempt(what), Retry)


@pytest.mark.parametrize("lost", [CLOSED, Failure(504, "upstream_timeout", "The answer did not come in time.")], ids=lambda lost: lost.code)
def test_a_lost_request_is_sent_to_one_other_backend(lost: Failure) -> None:
    """Azure may have done the work, and bill it: one repeat, none of an operation that must not be repeated."""
    asking = attempts()
    assert ("a", "b") == (asked(asking.first()), asked(asking.next_attempt(lost)))
    assert GIVE_UP is asking.next_attempt(lost)


@pytest.mark.parametrize(
    ("level", "refused", "propagate", "made"),
    [("INFO", False, True, 0), ("DEBUG", True, True, 0), ("DEBUG", False, False, 0), ("DEBUG", False, True, 1)],
)
def test_a_reason_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, level: str, refused: bool, propagate: bool, made: int) -> None:
    """No log record is made unless a handler takes debug messages: mitmproxy's logger accepts them all."""
    handler = logging.Handler(level)
    handler.addFilter(lambda _: not refused)
    root, logger = logging.getLogger(), attempts_module.logger
    records = Mock()
    monkeypatch.setattr(handler, "emit", records)
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", propagate)
    make = Mock(wraps=logger.makeRecord)
    monkeypatch.setattr(logger, "makeRecord", make)
    monkeypatch.setattr(logger, "isEnabledFor", lambda _: True)  # as mitmproxy's logger is set
    attempts().first()
    assert made == make.call_count == records.call_count


def test_the_reasons_of_attempts(caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt has the reason for its backend, in the log at debug level too; a repaired request keeps it."""
    caplog.set_level("DEBUG")
    asking = attempts(body=CHAT | {"max_tokens": 5})
    asking.first()
    asking.next_attempt(failing(400, MAX_TOKENS))
    asking.next_attempt(failing(429))
    assert ["priority", "priority", "failover from a"] == [one.reason for one in asking.tried]
    assert "POST /v1/chat/completions: backend b, reason: failover from a" in caplog.text
    asking.shared.owners.add("resp_123", "b")
    owned = attempts(path="/v1/responses", body={"model": "m", "previous_response_id": "resp_123"}, of=asking.shared)
    owned.first()
    assert "owner" == owned.headers()["x-azure-openai-proxy-reason"]


EVEN = tuple(replace(backend, priority=0) for backend in (A, B, C))
SESSION = {"prompt_cache_key": "k"}


def served(asking: Attempts) -> str:
    asking.first()
    asking.succeeded(http.Headers())
    asking.end()
    return asking.tried[-1].backend


def test_a_session_stays_at_its_backend() -> None:
    """The requests of a session go to the backend that served it last, those of another client or model to any."""
    of = shared()
    first = served(attempts(*EVEN, of=of, body=CHAT | SESSION))
    for _ in range(5):
        again = attempts(*EVEN, of=of, body=CHAT | SESSION)
        assert (first, "bound") == (served(again), again.tried[0].reason)
    assert 1 == len(of.sessions)
    others = attempts(*EVEN, of=of, body=CHAT | SESSION, key="k"), attempts(*EVEN, of=of, body=CHAT | SESSION | {"model": "m"})
    named = attempts(*EVEN, of=of, body=CHAT | SESSION)
    named.candidates.client = "team"
    for other in (*others, named):
        served(other)
        assert "weight" == other.tried[0].reason
    assert 4 == len(of.sessions)


def test_a_session_moves_with_a_failover() -> None:
    """After a failure of its backend a session stays where it was moved."""
    of = shared()
    first = served(attempts(*EVEN, of=of, body=CHAT | SESSION))
    asking = attempts(*EVEN, of=of, body=CHAT | SESSION)
    asking.first()
    moved = asked(asking.next_attempt(failing(503, retry_after="0")))
    assert (0, f"failover from {first}") == (len(of.sessions), asking.tried[1].reason)
    asking.succeeded(http.Headers())
    asking.end()
    assert moved == served(attempts(*EVEN, of=of, body=CHAT | SESSION))


@pytest.mark.parametrize(
    ("failure", "bound"),
    [
        (REFUSED, 0),
        (CLOSED, 0),
        (failing(429), 0),
        (failing(400), 1),
        (failing(404), 1),
        (Failure(503, "proxy_shortage", "The proxy could not open a connection."), 1),
    ],
    ids=str,
)
def test_which_failures_end_a_binding(failure: Failure | http.Response, bound: int) -> None:
    """A failure of the backend ends the binding, an error of the client or of the proxy does not."""
    of = shared()
    served(attempts(*EVEN, of=of, body=CHAT | SESSION))
    asking = attempts(*EVEN, of=of, body=CHAT | SESSION, max_attempts=1)
    asking.first()
    asking.next_attempt(failure)
    assert bound == len(of.sessions)


def test_a_broken_stream_ends_a_binding_and_a_cancelled_one_does_not() -> None:
    """A client that leaves says nothing about the backend."""
    of = shared()
    served(attempts(*EVEN, of=of, body=CHAT | SESSION))
    left = attempts(*EVEN, of=of, body=CHAT | SESSION)
    left.first()
    left.end()
    assert 1 == len(of.sessions)
    broken = attempts(*EVEN, of=of, body=CHAT | SESSION)
    broken.first()
    broken.broke_off(CLOSED)
    assert 0 == len(of.sessions)
    other = attempts(*EVEN, of=of)
    other.first()
    other.broke_off(CLOSED)


def test_a_session_needs_several_backends() -> None:
    """Where only one backend has the model, nothing is bound."""
    of = shared()
    served(attempts(A, of=of, body=CHAT | SESSION))
    served(attempts(replace(A, models=Mapper.parse("other=o")), B, of=of, body=CHAT | SESSION))
    assert 0 == len(of.sessions)


SEALED = "gAAAAA" + "s" * 80
THOUGHT = {"type": "reasoning", "id": "rs_1", "encrypted_content": SEALED}
ANONYMOUS = {"type": "reasoning", "encrypted_content": SEALED}
REFERENCE = {"type": "item_reference", "id": "rs_1"}


def conversation(*items: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "input": [{"role": "user", "content": "hi"}, *items]}


def following(of: Shared, *items: dict[str, Any], backends: tuple[Backend, ...] = EVEN, **settings: Any) -> Attempts:
    return attempts(*backends, of=of, path="/v1/responses", body=conversation(*items), **settings)


def made_by(name: str, *ids: str) -> Shared:
    of = shared()
    for id_ in ids or ("rs_1", SEALED[-64:]):
        of.owners.claim(id_, name)
    return of


@pytest.mark.parametrize("item", [THOUGHT, ANONYMOUS, REFERENCE])
def test_an_item_goes_to_the_backend_that_made_it(item: dict[str, Any]) -> None:
    """Its owner is asked whatever its state, although the session is bound elsewhere, and the owner's answer counts."""
    of = made_by("b")
    while "b" == served(following(of)):
        of.sessions = type(of.sessions)()
    of.pool.unreachable(of.pool.begin(EVEN[1], "m"))
    asking = following(of, item)
    assert ("b", "owner") == (served(asking), asking.tried[0].reason)
    bound = following(of)
    assert ("b", "bound") == (served(bound), bound.tried[0].reason)
    asking = following(of, item)
    asking.first()
    assert GIVE_UP is asking.next_attempt(failing(429, retry_after="30"))
    assert "b" == served(following(of, item))


@pytest.mark.parametrize("failure", [REFUSED, CLOSED])
def test_an_item_whose_backend_cannot_be_reached(failure: Failure) -> None:
    """The client gets an error that names the item; no other backend is asked."""
    asking = following(made_by("b"), THOUGHT)
    asking.first()
    decision = asking.next_attempt(failure)
    assert isinstance(decision, Respond)
    assert isinstance(decision.response, Failure)
    assert (503, "item_backend_gone") == decision.response[:2]
    assert "Item 'rs_1' in `input` was made by the backend 'b', which is gone" in decision.response.message


def test_an_item_whose_backend_is_slow() -> None:
    """A time-out stays one."""
    asking = following(made_by("b"), THOUGHT)
    asking.first()
    assert GIVE_UP is asking.next_attempt(Failure(504, "upstream_timeout", "silent"))


def test_an_item_whose_backend_is_not_configured() -> None:
    """It is refused with 404, also where lost items may be dropped, if it is a reference."""
    with pytest.raises(NotFound, match=r"Item 'input\[1\]' in `input` was made by the backend 'gone', which is gone"):
        following(made_by("gone"), ANONYMOUS).first()
    with pytest.raises(NotFound, match="configured no longer"):
        following(made_by("gone"), REFERENCE, drop_lost_items=True).first()


def test_lost_reasoning_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Without its backend a conversation goes on without the encrypted reasoning, marked in the attempt and in the log."""
    asking = following(made_by("gone"), THOUGHT, drop_lost_items=True)
    plan = asking.first()
    assert conversation() == json.loads(plan.client_request.content)
    assert 1 == asking.dropped
    assert ("1 items with encrypted reasoning left out",) == asking.tried[0].repaired
    assert "encrypted reasoning of gone" in caplog.text


def test_reasoning_is_dropped_when_its_backend_fails() -> None:
    """The owner is asked first. If it cannot be reached, the next owner or any other backend gets the rest."""
    of = made_by("b")
    of.owners.claim("rs_2", "c")
    asking = following(of, THOUGHT, drop_lost_items=True)
    assert conversation(THOUGHT) == json.loads(asking.first().client_request.content)
    decision = asking.next_attempt(REFUSED)
    assert isinstance(decision, Retry)
    assert asked(decision) in "ac"
    assert conversation() == json.loads(decision.plan.client_request.content)
    assert "failover from b" == asking.tried[1].reason
    both = following(of, THOUGHT, {"type": "reasoning", "id": "rs_2", "encrypted_content": "t" * 80}, drop_lost_items=True)
    assert "c" == asked(both.first())
    decision = both.next_attempt(REFUSED)
    assert isinstance(decision, Retry)
    assert "b" == asked(decision)
    assert conversation(THOUGHT) == json.loads(decision.plan.client_request.content)
    assert "a" == asked(both.next_attempt(REFUSED))


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        ({"message": "Item with id 'rs_1' not found."}, True),
        ({"message": "The encrypted content gAAA...ssss could not be verified.", "code": "invalid_encrypted_content"}, True),
        ({"message": "Previous response with id 'resp_1' not found.", "code": "previous_response_not_found"}, True),
        ({"message": "no", "code": ["invalid"]}, False),
        ({"message": "no"}, False),
    ],
)
def test_an_item_whose_backend_is_unknown(error: dict[str, Any], moves: bool) -> None:
    """Where the proxy does not know who made an item, each backend is asked once."""
    refusal = http.Response.make(400, json.dumps({"error": error}))
    asking = following(shared(), THOUGHT)
    asking.first()
    assert moves == isinstance(asking.next_attempt(refusal), Retry)
    if moves:
        assert isinstance(asking.next_attempt(refusal), Retry)
        assert not isinstance(asking.next_attempt(refusal), Retry)
    owned = following(made_by("b"), THOUGHT)
    owned.first()
    assert not isinstance(owned.next_attempt(refusal), Retry)


def test_items_that_cannot_be_dropped() -> None:
    """References, a request that no other backend can serve, and the last attempt end with the error."""
    of = made_by("b")
    elsewhere = replace(A, models=Mapper.parse("other=o")), EVEN[1]
    for asking in (
        following(of, THOUGHT, REFERENCE, drop_lost_items=True),
        following(of, THOUGHT, drop_lost_items=True, backends=elsewhere),
        following(of, THOUGHT, drop_lost_items=True, max_attempts=1),
    ):
        assert "b" == asked(asking.first())
        assert isinstance(asking.next_attempt(REFUSED), Respond)


def test_a_complete_item_prefers_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that any backend can read goes to its owner while that is healthy, and elsewhere otherwise."""
    of = made_by("b", "fc_1")
    called = {"type": "function_call", "id": "fc_1", "arguments": "{}"}
    asking = following(of, called)
    assert ("b", "owner") == (asked(asking.first()), asking.tried[0].reason)
    assert asked(asking.next_attempt(failing(503))) in "ac"
    assert asked(following(of, called).first()) in "ac"
    assert "a" == asked(following(made_by("gone", "fc_1"), called, backends=(A, B)).first())
    monkeypatch.setattr(Shared, "has_token", lambda _, backend: backend.name != "b")
    assert "a" == asked(following(made_by("b", "fc_1"), called, backends=(A, B)).first())


def test_a_shortage_of_the_proxy_blames_no_backend() -> None:
    """Without file descriptors no other backend can be asked either, and none is to blame."""
    asking = attempts()
    asking.first()
    assert GIVE_UP is asking.next_attempt(Failure(503, "proxy_shortage", "The proxy could not open a connection."))
    assert {"healthy"} == {view.state for view in asking.shared.pool.views()}


def test_a_shortage_of_the_proxy_heals_no_backend() -> None:
    """A backend in its cool-down, which a request probes meanwhile, stays there."""
    now = 0.0
    of = Shared(Pool(lambda: now, random.Random(1)))
    asking = attempts(A, of=of)
    asking.first()
    asking.next_attempt(REFUSED)
    now = 3600.0
    asking = attempts(A, of=of)
    asking.first()
    asking.next_attempt(Failure(503, "proxy_shortage", "The proxy could not open a connection."))
    assert {"probe"} == {view.state for view in of.pool.views()}


@pytest.mark.parametrize("failure", [CLOSED, Failure(504, "upstream_timeout", "silent")])
def test_the_end_of_a_websocket_blames_no_backend(failure: Failure) -> None:
    """However its connection ends; the attempt has the cause."""
    asking = attempts(method="WS", path="/v1/realtime?model=gpt-4o")
    asking.first()
    asking.upgraded()
    asking.end()
    asking.broke_off(failure)
    assert {"healthy"} == {view.state for view in asking.shared.pool.views()}
    assert [("a", failure.code)] == [(attempt.backend, attempt.cause) for attempt in asking.tried]


def test_a_websocket_shows_that_its_backend_is_healthy() -> None:
    """Its 101 ends the cool-down, as the head of another response does, and is no measure of how fast responses are."""
    now = 0.0
    of = Shared(Pool(lambda: now, random.Random(1)))
    asking = attempts(A, of=of)
    asking.first()
    asking.next_attempt(failing(500))
    now = 3600.0
    asking = attempts(A, of=of, method="WS", path="/v1/realtime?model=gpt-4o")
    asking.first()
    asking.upgraded()
    (view,) = of.pool.views()
    assert ("healthy", None) == (view.state, view.first_byte)


@pytest.mark.parametrize("status", [400, 409, 413, 422, 501])
def test_client_errors_are_passed_on(status: int) -> None:
    """An error that the client caused is passed to the client without failover."""
    asking = attempts()
    asking.first()
    assert GIVE_UP is asking.next_attempt(failing(status))


def test_a_clients_own_key_is_not_carried_around() -> None:
    """A client's own key that one backend rejects is not sent to another backend."""
    asking = attempts(replace(A, token=""), replace(B, token=""))
    asking.first()
    assert GIVE_UP is asking.next_attempt(failing(401))


def test_max_attempts() -> None:
    """`max_attempts` limits the sum of all attempts."""
    asking = attempts(max_attempts=2)
    asking.first()
    asking.next_attempt(CLOSED)
    assert GIVE_UP is asking.next_attempt(CLOSED)


def test_a_lone_backend() -> None:
    """A sole backend gets each request once: whether the client asks again is the client's decision."""
    asking = attempts(A)
    asking.first()
    assert GIVE_UP is asking.next_attempt(CLOSED)
    asking = attempts(A)
    asking.first()
    failed = failing(503)
    assert GIVE_UP is asking.next_attempt(failed)
    assert "retry-after" not in failed.headers


def test_nothing_is_sent_twice_once_it_has_begun() -> None:
    """There is no retry after the response began, or if the request body was streamed."""
    asking = attempts()
    asking.first()
    asking.succeeded(http.Headers())
    asking.broke_off(CLOSED)
    assert [("a", "upstream_error")] == [(attempt.backend, attempt.cause) for attempt in asking.tried]
    uploading = attempts(more=True)
    uploading.first()
    assert GIVE_UP is uploading.next_attempt(REFUSED)


@pytest.mark.parametrize(
    "method, path, body, closed, missing",
    [
        ("POST", "/v1/files", {}, False, False),
        ("POST", "/v1/batches", {}, False, False),
        ("POST", "/v1/responses", {"model": "m", "background": True}, False, False),
        ("POST", "/v1/responses", {"model": "m", "background": False}, True, True),
        ("POST", "/v1/responses", {"model": "m"}, True, True),
        ("PATCH", "/v1/files", {}, False, False),
        ("GET", "/v1/files/file-abc123", {}, True, True),
        ("DELETE", "/v1/files/file-abc123", {}, True, True),
        ("POST", "/v1/batches/batch_12345/cancel", {}, False, True),
    ],
)
def test_safe_retries(method: str, path: str, body: dict[str, Any], closed: bool, missing: bool) -> None:
    """A request that creates an object is retried only if it cannot have reached Azure, or after a 404 for an id in its path."""
    for what, again in ((REFUSED, True), (CLOSED, closed), (failing(404), missing), (failing(503), closed)):
        asking = attempts(method=method, path=path, body=body)
        asking.first()
        assert again is isinstance(asking.next_attempt(what), Retry)


def test_the_most_useful_failure() -> None:
    """The client receives the 429, with the shortest Retry-After of all backends, regardless of later failures."""
    asking = attempts()
    asking.first()
    limited = failing(429, retry_after="30")
    asking.next_attempt(limited)
    asking.next_attempt(failing(429, retry_after="20"))
    best = asking.next_attempt(REFUSED)
    assert isinstance(best, Respond)
    assert isinstance(best.response, http.Response)
    assert 429 == best.response.status_code
    assert 0 < int(best.response.headers["retry-after-ms"]) <= 1000  # of the backend that refused the connection
    asking = attempts(A, B)
    asking.first()
    asking.next_attempt(failing(503, retry_after="9"))
    last = failing(429, retry_after="7")
    assert GIVE_UP is asking.next_attempt(last)
    assert ("7", "7000") == (last.headers["retry-after"], last.headers["retry-after-ms"])
    asking = attempts(A, B)
    asking.first()
    asking.next_attempt(failing(429))
    assert GIVE_UP is asking.next_attempt(failing(400))


def test_all_backends_rate_limited() -> None:
    """While every backend is rate-limited, the client receives a 429 without an attempt."""
    of = shared()
    first = attempts(A, B, of=of)
    first.first()
    first.next_attempt(failing(429, retry_after="30"))
    first.next_attempt(failing(429, retry_after="20"))
    with pytest.raises(Unavailable) as caught:
        attempts(A, B, of=of).first()
    assert (429, 20) == (caught.value.status, caught.value.wait)


def test_no_backend_has_the_model() -> None:
    """A model that no backend has is answered with 404."""
    with pytest.raises(NotFound, match=r"no backend has it\. Configured: gpt-4o"):
        attempts(replace(A, models=Mapper.parse("gpt-4o=x")), body={"model": "o1"}).first()


def test_a_backend_without_a_token() -> None:
    """A backend without an Entra ID token is skipped, and the client receives a 503 if there is no other."""
    waiting = replace(A, token="", entra="cli")
    of = shared()
    of.tokens.use = lambda _: None  # type: ignore[method-assign, assignment]
    assert "b" == asked(attempts(waiting, B, of=of).first())
    with pytest.raises(Unavailable) as caught:
        attempts(waiting, of=of).first()
    assert "entra_token_unavailable" == caught.value.code


def test_repair_and_learned_repairs() -> None:
    """The same backend gets the repaired request, later requests are repaired in advance, and another backend gets the original."""
    of = shared()
    body = CHAT | {"max_tokens": 5}
    asking = attempts(body=body, of=of)
    asking.first()
    decision = asking.next_attempt(failing(400, MAX_TOKENS))
    assert isinstance(decision, Retry)
    assert ("a", (Rename("max_tokens", "max_completion_tokens"),)) == (asked(decision), decision.plan.applied)
    asking.succeeded(http.Headers())
    asking.end()
    again = attempts(body=body, of=of)
    assert b"max_completion_tokens" in again.first().client_request.content
    assert [Attempt("a", "", ("max_tokens -> max_completion_tokens",), "priority")] == again.tried
    elsewhere = again.next_attempt(failing(500))
    assert isinstance(elsewhere, Retry)
    assert b'"max_tokens"' in elsewhere.plan.client_request.content
    # The same rejection of a repaired request is final.
    once = attempts(body=body)
    once.first()
    once.next_attempt(failing(400, MAX_TOKENS))
    assert GIVE_UP is once.next_attempt(failing(400, MAX_TOKENS))
    off = attempts(body=body, repair=False)
    off.first()
    assert GIVE_UP is off.next_attempt(failing(400, MAX_TOKENS))


def test_at_most_four_changes() -> None:
    """After four repairs the client receives Azure's error."""
    names = ["user", "prediction", "metadata", "seed", "top_p"]
    asking = attempts(body=CHAT | dict.fromkeys(names, 1), max_attempts=9)
    asking.first()
    outcomes = [asking.next_attempt(failing(400, f"Unknown parameter: '{name}'.")) for name in names]
    assert [True, True, True, True, False] == [isinstance(outcome, Retry) for outcome in outcomes]


def test_stored_objects_have_an_owner() -> None:
    """A request that names a stored object goes to the backend that stores it, whichever backend comes first."""
    of = shared()
    making = attempts(path="/v1/responses", body={"model": "m"}, of=of)
    making.first()
    making.next_attempt(failing(503))
    making.succeeded(http.Headers())
    making.created(b'{"id":"resp_123456"}')
    getting = attempts(method="GET", path="/v1/responses/resp_123456", body={}, of=of)
    assert "b" == asked(getting.first())
    assert GIVE_UP is getting.next_attempt(failing(503))
    finding = attempts(method="GET", path="/v1/responses/resp_777777", body={}, of=of)
    finding.first()
    finding.next_attempt(failing(404))
    finding.succeeded(http.Headers())
    assert "resp_777777" in of.owners._names


def test_items_have_an_owner() -> None:
    """Items belong to the backend that responded, and with a single backend no owners are recorded."""
    of = shared()
    making = attempts(A, B, path="/v1/responses", body={"model": "m"}, of=of)
    assert making.makes_items
    event = b'{"type":"response.output_item.done","item":{"id":"fc_1"}}'
    making.item(event)  # before the first attempt
    making.first()
    making.next_attempt(failing(429))
    making.item(b'{"type":"response.output_text.delta","item":{"id":"fc_1"}}')
    assert 0 == len(of.owners)
    making.item(event)
    body = {"model": "m", "input": [{"type": "item_reference", "id": "fc_1"}]}
    assert "b" == asked(attempts(A, B, path="/v1/responses", body=body, of=of).first())
    assert not attempts(A, path="/v1/responses", body=body).makes_items
    assert not attempts(A, B).makes_items
    alone = attempts(A, path="/v1/responses", body={"model": "m"})
    alone.first()
    alone.succeeded(http.Headers())
    alone.created(b'{"id":"resp_1"}')
    assert 0 == len(alone.shared.owners)


def test_reported_attempts() -> None:
    """The flow's metadata and the headers report each attempt's backend, the cause of its failure and its repairs."""
    asking = attempts(body=CHAT | {"max_tokens": 5})
    asking.first()
    assert [{"backend": "a", "cause": "", "repaired": []}] == asking.summary()
    first = {"x-azure-openai-proxy-backend": "a", "x-azure-openai-proxy-attempts": "1", "x-azure-openai-proxy-reason": "priority"}
    assert first == asking.headers()
    asking.next_attempt(failing(429))
    asking.next_attempt(failing(400, MAX_TOKENS))
    assert "max_tokens -> max_completion_tokens" == asking.headers()["x-azure-openai-proxy-repaired"]
    assert [
        {"backend": "a", "cause": "429", "repaired": []},
        {"backend": "b", "cause": "400", "repaired": []},
        {"backend": "b", "cause": "", "repaired": ["max_tokens -> max_completion_tokens"]},
    ] == asking.summary()


def test_before_the_first_attempt() -> None:
    """Before the first attempt `end` and `wait` do nothing."""
    asking = attempts()
    asking.end()
    asking.created(b"{}")
    asking.succeeded(http.Headers())
    assert (None, []) == (asking.candidates.wait(), asking.summary())


def learned(of: Shared) -> list[list[str]]:
    return [[str(change) for change in changes] for changes in of.learned.all().values()]


def test_the_form_is_computed_once_per_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned repairs are looked up, and new ones learned, for the target of the attempt: no form is computed a second time."""
    of = shared()
    forms: list[object] = []
    path = "/openai/deployments/gpt-4o/chat/completions"
    form = azure_request.form

    def counted(*given: Any) -> Any:
        forms.append(given)
        return form(*given)

    monkeypatch.setattr(azure_request, "form", counted)
    first = attempts(A, path=path, body=CHAT | {"user": "me"}, of=of, version="2024-06-01")
    first.first()
    first.next_attempt(failing(400, "Unknown parameter: 'user'."))
    first.succeeded(http.Headers())
    assert ([["user left out"]], 2) == (learned(of), len(forms))
    second = attempts(A, path=path, body=CHAT | {"user": "me"}, of=of, version="2024-06-01")
    second.first()
    second.succeeded(http.Headers())
    assert (["user left out"], 3) == ([*second.tried[0].repaired], len(forms))


def test_repairs_are_learned_per_operation_and_version() -> None:
    """A learned repair applies only to the same deployment, operation and api-version."""
    of = shared()
    body = CHAT | {"user": "me"}
    asking = attempts(A, path="/openai/deployments/gpt-4o/chat/completions", body=body, of=of, version="2024-06-01")
    asking.first()
    asking.next_attempt(failing(400, "Unknown parameter: 'user'."))
    asking.succeeded(http.Headers())
    assert [["user left out"]] == learned(of)
    same = attempts(A, path="/openai/deployments/GPT-4o/chat/completions", body=body, of=of, version="2024-06-01")
    assert b'"user"' not in same.first().client_request.content
    other = attempts(A, path="/openai/deployments/gpt-4o/chat/completions", body=body, of=of, version="2024-10-21")
    assert b'"user"' in other.first().client_request.content
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/completions"):
        assert b'"user"' in attempts(A, path=path, body=body, of=of).first().client_request.content


def test_a_version_that_a_client_made_up_teaches_nothing() -> None:
    """A repaired api-version that a client invented is not learned, so that clients cannot fill the memory."""
    of = shared()
    asking = attempts(A, path="/openai/deployments/gpt-4o/chat/completions", body=CHAT | {"user": "me"}, of=of, version="2024-99-99")
    asking.first()
    asking.next_attempt(failing(400, "API version not supported"))
    asking.next_attempt(failing(400, "Unknown parameter: 'user'."))
    asking.succeeded(http.Headers())
    assert [] == learned(of)


def test_repairs_are_learned_per_client_key() -> None:
    """A repair learned with a client's own key applies to that key only, because a gateway may map keys to resources."""
    of = shared()
    own = replace(A, token="")
    for key, sent in (("one", 2), ("one", 1), ("two", 2)):
        asking = attempts(own, body=CHAT | {"user": "me"}, of=of, key=key)
        if b'"user"' in asking.first().client_request.content:
            asking.next_attempt(failing(400, "Unknown parameter: 'user'."))
        asking.succeeded(http.Headers())
        assert sent == len(asking.tried)


def test_a_limit_of_one_clients_key_is_that_keys() -> None:
    """A rate limit of one client's key leaves other keys alone, and that client receives a Retry-After."""
    of = shared()
    own = replace(A, token=""), replace(B, token="")
    first = attempts(*own, of=of, key="one")
    first.first()
    first.next_attempt(failing(429, retry_after="30"))
    first.next_attempt(failing(429, retry_after="20"))
    with pytest.raises(Unavailable):
        attempts(*own, of=of, key="one").first()
    assert "a" == asked(attempts(*own, of=of, key="two").first())
    assert "a" == asked(attempts(*own, of=of).first())


@pytest.mark.parametrize(
    "more", [{"max_tokens": 10**8}, {"n": 128, "max_completion_tokens": 4096}, {"max_tokens": 1, "max_output_tokens": 10**6, "best_of": 2}]
)
def test_a_request_beyond_the_limit_stops_no_others(more: dict[str, int]) -> None:
    """A 429 for a request that exceeds the limit alone stops only requests of at least that size."""
    of = shared()
    large = attempts(A, B, of=of, body=CHAT | more)
    large.first()
    large.next_attempt(failing(429, retry_after="60"))
    large.next_attempt(failing(429, retry_after="60"))
    assert "a" == asked(attempts(A, B, of=of).first())
    with pytest.raises(Unavailable) as caught:
        attempts(A, B, of=of, body=CHAT | more).first()
    assert 60 == caught.value.wait


ABSENT = '{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}'


@pytest.mark.parametrize(
    ("status", "body", "next_asked"),
    [
        (401, "", "b"),
        (403, '{"error":{"code":"403","message":"no"}}', "b"),
        (403, "<html>the front dislikes this prompt</html>", "a"),
        (404, ABSENT, "b"),
        (404, '{"error":{"code":"404","message":"Resource not found"}}', "a"),
        (404, '{"error":{"code":404,"message":"No such file"}}', "a"),
        (404, '{"error":"no"}', "a"),
        (404, "no", "a"),
    ],
)
def test_one_clients_error_does_not_mark_a_deployment_absent(status: int, body: str, next_asked: str) -> None:
    """An error caused by one client's path, version, file or prompt does not move other requests to another backend."""
    of = shared()
    asking = attempts(A, B, of=of)
    asking.first()
    asking.next_attempt(http.Response.make(status, body))
    assert next_asked == asked(attempts(A, B, of=of).first())


def test_a_failure_of_one_model_leaves_the_others() -> None:
    """A failing model leaves other models of the backend in use, and its cool-down is limited whatever Retry-After says."""
    of = shared()
    failed = attempts(A, B, of=of)
    failed.first()
    failed.next_attempt(failing(500, retry_after="86400"))
    assert ("b", "a") == (asked(attempts(A, B, of=of).first()), asked(attempts(A, B, of=of, body={"model": "o1"}).first()))
    assert of.unusable() is None
    assert {"gpt-4o": 300} == of.pool.views()[0].failing


STREAM = CHAT | {"stream": True}
NO_OPTIONS = failing(400, "Unrecognized request argument supplied: stream_options")


def added(decision: object) -> bool:
    plan = decision.plan if isinstance(decision, Retry) else decision
    assert isinstance(plan, Plan)
    return plan.add_usage


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        (True, {}),
        (True, {"path": "/v1/completions"}),
        (True, {"path": "/openai/deployments/d/chat/completions", "version": "2024-08-01-preview"}),
        (False, {"path": "/openai/deployments/d/chat/completions", "version": "2024-07-01-preview"}),
        (False, {"reads_usage": False}),
        (False, {"body": CHAT}),
        (False, {"body": STREAM | {"stream_options": {"include_usage": True}}}),
        (False, {"path": "/v1/responses"}),
    ],
)
def test_the_usage_is_requested(expected: bool, changed: dict[str, Any]) -> None:
    """It is requested for a stream of a chat or a completion if something needs it, the client does not, and Azure may know the option."""
    options: dict[str, Any] = {"body": STREAM, "reads_usage": True} | changed
    assert expected == added(attempts(**options).first())


@pytest.mark.parametrize("settings", [{}, {"repair": False}, {"max_attempts": 1}])
def test_a_refused_request_for_the_usage(settings: dict[str, Any]) -> None:
    """The request is sent again without it, and is the same for the deployment's next request once that has succeeded."""
    of = shared()
    asking = attempts(A, of=of, body=STREAM, reads_usage=True, **settings)
    assert added(asking.first())
    again = asking.next_attempt(NO_OPTIONS)
    assert isinstance(again, Retry)
    assert not added(again)
    assert STREAM == json.loads(again.plan.client_request.content)
    assert added(attempts(A, of=of, body=STREAM, reads_usage=True).first())
    asking.succeeded(http.Headers())
    assert not added(attempts(A, of=of, body=STREAM, reads_usage=True).first())
    assert added(attempts(A, of=of, body=STREAM | {"model": "other"}, reads_usage=True).first())
    of.use((B,))
    of.use((A,))
    assert added(attempts(A, of=of, body=STREAM, reads_usage=True).first())


def test_a_refusal_of_the_clients_own_request() -> None:
    """An error that stays without the request for the usage is the client's, and nothing is remembered."""
    of = shared()
    asking = attempts(A, of=of, body=STREAM, reads_usage=True)
    asking.first()
    assert isinstance(asking.next_attempt(NO_OPTIONS), Retry)
    assert GIVE_UP == asking.next_attempt(NO_OPTIONS)
    assert 0 == len(of.usage_refusals)


@pytest.mark.parametrize("escaped", [False, True])
def test_a_refusal_of_one_request(escaped: bool) -> None:
    """With data of one's own Azure refuses the option, which says nothing about the deployment."""
    of = shared()
    body = json.dumps(STREAM | {"data_sources": [{}]})
    asking = attempts(A, of=of, body=body.replace("_", "\\u005f") if escaped else body, reads_usage=True)
    asking.first()
    asking.next_attempt(failing(400, "Validation error at #/stream_options: Extra inputs are not permitted"))
    asking.succeeded(http.Headers())
    assert 0 == len(of.usage_refusals)


def test_another_backend_may_know_the_option() -> None:
    """After a failover the usage is requested again."""
    asking = attempts(A, B, body=STREAM, reads_usage=True)
    asking.first()
    assert not added(asking.next_attempt(NO_OPTIONS))
    assert added(asking.next_attempt(failing(503)))


@pytest.mark.parametrize("change", [Drop("stream_options"), Drop("stream_options.include_usage"), Moved("stream_options")])
def test_a_learned_refusal(change: Change) -> None:
    """A deployment that has refused the option of a client is not asked."""
    of = shared()
    asking = attempts(A, of=of, body=STREAM)
    asking.first()
    of.learned.add(asking._learned(A), [Drop("user"), change])
    assert not added(attempts(A, of=of, body=STREAM, reads_usage=True).first())
    assert added(attempts(A, of=of, body=STREAM, reads_usage=True, repair=False).first())


def test_whether_a_request_could_move() -> None:
    """To a backend that was not asked yet, while an attempt is left and the operation is repeatable; asking changes nothing."""
    asking = attempts(A, B)
    asking.first()
    assert (True, True) == (asking.could_move(), asking.could_move())
    asking.next_attempt(failing(429))
    assert not asking.could_move()
    for fixed in (attempts(A), attempts(max_attempts=1), attempts(more=True), attempts(path="/v1/files", body={})):
        fixed.first()
        assert not fixed.could_move()
    of = shared()
    attempts(A, B, of=of)
    of.pool.rate_limited(of.pool.begin(B, "gpt-4o"), 10)
    asking = attempts(A, B, of=of)
    asking.first()
    assert not asking.could_move()


def test_if_all_fail_in_their_stream_the_last_error_counts() -> None:
    """Otherwise the most informative failure does."""
    for first_in_stream in (True, False):
        asking = attempts(A, B)
        asking.first()
        asking.next_attempt(failing(429), in_stream=first_in_stream)
        assert (GIVE_UP if first_in_stream else Respond) in (last := asking.next_attempt(failing(500), in_stream=True), type(last))


def test_the_headers_of_a_request_that_no_backend_could_take() -> None:
    """There is no attempt to report."""
    of = shared()
    asking = attempts(A, B, of=of)
    for backend in (A, B):
        of.pool.rate_limited(of.pool.begin(backend, "gpt-4o"), 10)
    with pytest.raises(Unavailable):
        asking.first()
    assert {"x-azure-openai-proxy-attempts": "0"} == asking.headers()


def test_the_configured_cool_down() -> None:
    """It limits that of a 429 and that of a 5xx; the client gets the true time."""
    asking = attempts(A, B, max_cool_down=5.0)
    asking.first()
    asking.next_attempt(failing(429, retry_after="86400"))
    last = failing(503, retry_after="7200")
    assert isinstance(asking.next_attempt(last), Respond)
    first, second = asking.shared.pool.views()
    assert (5, 5) == (first.refused["gpt-4o"], second.failing["gpt-4o"])
    assert 7200 == asking.candidates.wait()


FLEX = CHAT | {"service_tier": "flex"}
NO_FLEX = "Invalid service_tier argument"


def tier_of(decision: object) -> object:
    plan = decision.plan if isinstance(decision, Retry) else decision
    assert isinstance(plan, Plan)
    return json.loads(plan.client_request.content).get("service_tier")


def clocked() -> tuple[Shared, list[float]]:
    now = [0.0]
    return Shared(Pool(lambda: now[0], random.Random(1))), now


def test_a_refused_tier_fails_over_with_the_tier() -> None:
    """The backend is passed over for an hour for this tier alone; if all refuse, the client gets the last refusal."""
    of, now = clocked()
    asking = attempts(A, B, body=FLEX, of=of)
    asking.first()
    moved = asking.next_attempt(failing(400, NO_FLEX))
    assert ("b", "flex") == (asked(moved), tier_of(moved))
    assert GIVE_UP is asking.next_attempt(failing(400, NO_FLEX))
    asking = attempts(A, B, body=FLEX, of=of)
    assert "a" == asked(asking.first())  # both have refused it
    asking.succeeded(http.Headers())
    now[0] = 3599.0
    assert ["a", "a"] == [asked(attempts(A, B, body=body, of=of).first()) for body in (FLEX, CHAT)]
    of, now = clocked()
    asking = attempts(A, B, body=FLEX, of=of)
    asking.first()
    asking.next_attempt(failing(400, NO_FLEX))
    asking.succeeded(http.Headers())
    now[0] = 3599.0
    assert ["b", "a", "a"] == [
        asked(attempts(A, B, body=body, of=of).first()) for body in (FLEX, CHAT, CHAT | {"service_tier": "priority"})
    ]
    now[0] = 3600.0
    assert "a" == asked(attempts(A, B, body=FLEX, of=of).first())


@pytest.mark.parametrize("statuses", [(400, 429), (429, 400)])
def test_a_rate_limit_is_more_useful_than_a_refused_tier(statuses: tuple[int, int]) -> None:
    """The client gets the 429, in the next requests too."""
    of = shared()
    asking = attempts(A, B, body=FLEX, of=of)
    asking.first()
    failures = [failing(status, NO_FLEX, retry_after="20") for status in statuses]
    asking.next_attempt(failures[0])
    last = asking.next_attempt(failures[1])
    response = last.response if isinstance(last, Respond) else failures[1]
    assert isinstance(response, http.Response)
    assert 429 == response.status_code
    with pytest.raises(Unavailable) as raised:
        attempts(A, B, body=FLEX, of=of).first()
    assert 429 == raised.value.status


def test_a_lone_backend_is_always_asked_for_the_tier() -> None:
    """Its refusal is passed on, and remembered for nothing."""
    of = shared()
    for _ in range(2):
        asking = attempts(A, body=FLEX, of=of)
        assert "flex" == tier_of(asking.first())
        assert GIVE_UP is asking.next_attempt(failing(400, NO_FLEX))


def test_a_limit_of_a_tier() -> None:
    """A 429 for flex says nothing about the deployment's other requests."""
    of = shared()
    asking = attempts(A, B, body=FLEX, of=of)
    asking.first()
    asking.next_attempt(failing(429, retry_after="60"))
    assert ["b", "a"] == [asked(attempts(A, B, body=body, of=of).first()) for body in (FLEX, CHAT)]
    assert {"gpt-4o (flex)": 60} == of.pool.views()[0].refused


@pytest.mark.parametrize("failures", [(400, 400), (429, 429), (400, 503)])
def test_the_last_attempt_without_the_tier(failures: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    """It follows once no backend serves the tier, and is the last one; the attempt, the log and the headers say so."""
    caplog.set_level("INFO")
    asking = attempts(A, B, body=FLEX, tier_fallback=True, debug_headers=True)
    asking.first()
    assert "flex" == tier_of(asking.next_attempt(failing(failures[0], NO_FLEX)))
    assert "" == asking.tier_dropped
    last = asking.next_attempt(failing(failures[1], NO_FLEX))
    assert ("a", None, "flex") == (asked(last), tier_of(last), asking.tier_dropped)
    assert "service_tier flex left out" == asking.headers()["x-azure-openai-proxy-repaired"]
    assert "last attempt at a without it" in caplog.text
    assert not asking.could_move()
    assert not isinstance(asking.next_attempt(failing(503)), Retry)


def test_the_last_attempt_is_kept_for_the_one_without_the_tier() -> None:
    """Of the configured number; if there is but one, it has the tier."""
    asking = attempts(max_attempts=2, body=FLEX, tier_fallback=True)
    asking.first()
    assert None is tier_of(asking.next_attempt(failing(429)))
    asking = attempts(max_attempts=1, body=FLEX, tier_fallback=True)
    asking.first()
    assert GIVE_UP is asking.next_attempt(failing(400, NO_FLEX))


def test_a_tier_whose_limits_are_reached_everywhere() -> None:
    """With the option the request is sent without it at once; without, or if that is not possible either, the client gets a 429."""
    of = shared()
    attempts(A, B, of=of)
    for backend in (A, B):
        of.pool.rate_limited(of.pool.begin(backend, "gpt-4o (flex)"), 10)
    with pytest.raises(Unavailable):
        attempts(A, B, body=FLEX, of=of).first()
    assert None is tier_of(attempts(A, B, body=FLEX, of=of, tier_fallback=True).first())
    for backend in (A, B):
        of.pool.rate_limited(of.pool.begin(backend, "gpt-4o"), 10)
    asking = attempts(A, B, body=FLEX, of=of, tier_fallback=True)
    with pytest.raises(Unavailable):
        asking.first()
    assert "" == asking.tier_dropped


@pytest.mark.parametrize("failure", [REFUSED, failing(400, "Invalid 'temperature'")])
def test_no_attempt_without_the_tier(failure: Failure | http.Response) -> None:
    """After a failure that has nothing to do with the tier."""
    asking = attempts(A, body=FLEX, tier_fallback=True)
    asking.first()
    assert GIVE_UP is asking.next_attempt(failure)


@pytest.mark.parametrize(
    "said, sent",
    [
        ({"retry-after": "86400"}, ("86400", "86400000")),
        ({"retry-after": "2", "retry-after-ms": "1500"}, ("2", "1500")),
        ({"retry-after": "soon"}, ("soon", None)),
        ({}, (None, None)),
    ],
)
def test_when_to_retry_a_lone_backend(said: dict[str, str], sent: tuple[str | None, str | None]) -> None:
    """Its own time counts, in both headers."""
    asking = attempts(A)
    asking.first()
    refused = failing(429)
    refused.headers.update(said)
    asking.next_attempt(refused)
    assert sent == (refused.headers.get("retry-after"), refused.headers.get("retry-after-ms"))
