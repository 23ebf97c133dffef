"""The attempts of one request: the backend of each, and the reaction to each failure."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from mitmproxy import http

from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.api.request import ClientRequest, Query
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import Failure, NotFound, Unavailable
from azure_openai_proxy.routing.attempts import GIVE_UP, Attempt, Attempts, Plan, Respond, Retry
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.repair import Rename
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
    body: dict[str, Any] | None = None,
    of: Shared | None = None,
    more: bool = False,
    key: str = "",
    version: str = "",
    **settings: Any,
) -> Attempts:
    content = json.dumps(CHAT if body is None else body).encode()
    call = operations.recognise(method, path, {"content-type": "application/json"}, content)
    assert call
    of = of or shared()
    of.use(backends or (A, B, C))
    return Attempts(
        Settings(backends=of.backends, **settings), of, call, ClientRequest(http.Headers(), Query("", version, key), content, more=more)
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


def test_a_shortage_of_the_proxy_blames_no_backend() -> None:
    """Without file descriptors no other backend can be asked either, and none is to blame."""
    asking = attempts()
    asking.first()
    assert GIVE_UP is asking.next_attempt(Failure(503, "proxy_shortage", "The proxy could not open a connection."))
    assert {"healthy"} == {view.state for view in asking.shared.pool.views()}


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
    asking.answers(http.Headers())
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
    asking.answers(http.Headers())
    asking.end()
    again = attempts(body=body, of=of)
    assert b"max_completion_tokens" in again.first().asked.content
    assert [Attempt("a", "", ("max_tokens -> max_completion_tokens",))] == again.tried
    elsewhere = again.next_attempt(failing(500))
    assert isinstance(elsewhere, Retry)
    assert b'"max_tokens"' in elsewhere.plan.asked.content
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
    making.answers(http.Headers())
    making.created(b'{"id":"resp_123456"}')
    getting = attempts(method="GET", path="/v1/responses/resp_123456", body={}, of=of)
    assert "b" == asked(getting.first())
    assert GIVE_UP is getting.next_attempt(failing(503))
    finding = attempts(method="GET", path="/v1/responses/resp_777777", body={}, of=of)
    finding.first()
    finding.next_attempt(failing(404))
    finding.answers(http.Headers())
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
    alone.answers(http.Headers())
    alone.created(b'{"id":"resp_1"}')
    assert 0 == len(alone.shared.owners)


def test_reported_attempts() -> None:
    """The flow's metadata and the headers report each attempt's backend, the cause of its failure and its repairs."""
    asking = attempts(body=CHAT | {"max_tokens": 5})
    asking.first()
    assert [{"backend": "a", "cause": "", "repaired": []}] == asking.seen()
    assert {"x-azure-openai-proxy-backend": "a", "x-azure-openai-proxy-attempts": "1"} == asking.headers()
    asking.next_attempt(failing(429))
    asking.next_attempt(failing(400, MAX_TOKENS))
    assert "max_tokens -> max_completion_tokens" == asking.headers()["x-azure-openai-proxy-repaired"]
    assert [
        {"backend": "a", "cause": "429", "repaired": []},
        {"backend": "b", "cause": "400", "repaired": []},
        {"backend": "b", "cause": "", "repaired": ["max_tokens -> max_completion_tokens"]},
    ] == asking.seen()


def test_before_the_first_attempt() -> None:
    """Before the first attempt `end` and `wait` do nothing."""
    asking = attempts()
    asking.end()
    asking.created(b"{}")
    asking.answers(http.Headers())
    assert (None, []) == (asking.wait(), asking.seen())


def learned(of: Shared) -> list[list[str]]:
    return [[str(change) for change in changes] for changes in of.learned.all().values()]


def test_repairs_are_learned_per_operation_and_version() -> None:
    """A learned repair applies only to the same deployment, operation and api-version."""
    of = shared()
    body = CHAT | {"user": "me"}
    asking = attempts(A, path="/openai/deployments/gpt-4o/chat/completions", body=body, of=of, version="2024-06-01")
    asking.first()
    asking.next_attempt(failing(400, "Unknown parameter: 'user'."))
    asking.answers(http.Headers())
    assert [["user left out"]] == learned(of)
    same = attempts(A, path="/openai/deployments/GPT-4o/chat/completions", body=body, of=of, version="2024-06-01")
    assert b'"user"' not in same.first().asked.content
    other = attempts(A, path="/openai/deployments/gpt-4o/chat/completions", body=body, of=of, version="2024-10-21")
    assert b'"user"' in other.first().asked.content
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/completions"):
        assert b'"user"' in attempts(A, path=path, body=body, of=of).first().asked.content


def test_a_version_that_a_client_made_up_teaches_nothing() -> None:
    """A repaired api-version that a client invented is not learned, so that clients cannot fill the memory."""
    of = shared()
    asking = attempts(A, path="/openai/deployments/gpt-4o/chat/completions", body=CHAT | {"user": "me"}, of=of, version="2024-99-99")
    asking.first()
    asking.next_attempt(failing(400, "API version not supported"))
    asking.next_attempt(failing(400, "Unknown parameter: 'user'."))
    asking.answers(http.Headers())
    assert [] == learned(of)


def test_repairs_are_learned_per_client_key() -> None:
    """A repair learned with a client's own key applies to that key only, because a gateway may map keys to resources."""
    of = shared()
    own = replace(A, token="")
    for key, sent in (("one", 2), ("one", 1), ("two", 2)):
        asking = attempts(own, body=CHAT | {"user": "me"}, of=of, key=key)
        if b'"user"' in asking.first().asked.content:
            asking.next_attempt(failing(400, "Unknown parameter: 'user'."))
        asking.answers(http.Headers())
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


def test_unusable_while_all_backends_cool_down() -> None:
    """The proxy is unusable only if it has backends and all of them are in their cool-down."""
    of = shared()
    assert of.unusable() is None
    of.use((A, B))
    of.pool.unreachable(of.pool.begin(A, "gpt-4o"))
    of.pool.failed(of.pool.begin(B, "gpt-4o"), 86400)
    assert of.unusable() is None
    of.pool.unreachable(of.pool.begin(B, "gpt-4o"))
    assert "no backend is usable now" == of.unusable()
