"""Which backend gets a request, through a real mitmdump: the spread, provisioned throughput, and cool-downs of a day."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Gate, Simulator, status
from support.processes import PATIENCE, Mitmdump, only_http2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APIS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one two"}]}),
    "responses": ("/v1/responses", {"input": "one two"}),
}
WAYS = [(api, h2) for api in APIS for h2 in (False, True)]
DAY = 86_400.0
BACKENDS: dict[str, list[dict[str, Any]]] = {
    "equal": [{}, {}],
    "weights": [{"weight": 9}, {}],
    "provisioned": [{"weight": 9}, {"kind": "provisioned"}],
    **{f"{test}-{api}-{int(h2)}": [{}, {"priority": 1}] for test in ("probe", "nobody") for api, h2 in WAYS},
}
"""The settings of the backends for each model. No two tests have the same model, so none sees the cool-downs of another."""


@pytest.fixture(scope="module")
def both() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Simulator()) for _ in range(2)]


@pytest.fixture
def azures(both: list[Simulator]) -> list[Simulator]:
    for azure in both:
        azure.reset()
    return both


@pytest.fixture(scope="module")
def mitmdump(both: list[Simulator], tmp_path_factory: pytest.TempPathFactory, confdir: Path) -> Iterator[Mitmdump]:
    folder = tmp_path_factory.mktemp("routing")
    entries = [
        {"name": f"{model}-{index}", "endpoint": azure.http_url, "token": azure.key, "models": {model: "gpt-4o"}} | more
        for model, settings in BACKENDS.items()
        for index, (azure, more) in enumerate(zip(both, settings, strict=True))
    ]
    (folder / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))
    with Mitmdump(folder, confdir, options={"azure_openai_max_cool_down": "1", "azure_openai_debug_headers": "true"}) as proxy:
        yield proxy


@contextmanager
def client(proxy: Mitmdump, *, h2: bool = False) -> Iterator[httpx.Client]:
    how: dict[str, Any] = {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True}
    with httpx.Client(timeout=PATIENCE, trust_env=False, **(how if h2 else {"base_url": proxy.url})) as opened:
        yield opened


def spread(proxy: Mitmdump, model: str, count: int) -> Counter[str]:
    """How many of so many sequential requests each backend got. Each begins a conversation of its own."""
    got = Counter[str]()
    with client(proxy) as http:
        for number in range(count):
            body = {"model": model, "messages": [{"role": "user", "content": f"{number} is a number"}]}
            got[http.post("/v1/chat/completions", json=body).headers["x-azure-openai-proxy-backend"]] += 1
    return got


def test_sequential_requests_are_shared(mitmdump: Mitmdump, azures: list[Simulator]) -> None:
    """Neither of two equal backends gets less than a third."""
    got = spread(mitmdump, "equal", 60)
    assert min(got["equal-0"], got["equal-1"]) >= 20


def test_weights(mitmdump: Mitmdump, azures: list[Simulator]) -> None:
    """Of weights 9 and 1 the smaller one gets about a tenth."""
    assert 5 <= spread(mitmdump, "weights", 100)["weights-1"] <= 15


def test_provisioned_throughput_first(mitmdump: Mitmdump, azures: list[Simulator]) -> None:
    """Whatever the weights, until it is full; then it comes back first."""
    assert {"provisioned-1": 5} == spread(mitmdump, "provisioned", 5)
    azures[1].faults.next(status(429, retry_after=DAY))
    assert {"provisioned-0": 1} == spread(mitmdump, "provisioned", 1)
    deadline = time.monotonic() + PATIENCE
    while "provisioned-1" not in spread(mitmdump, "provisioned", 1):
        assert time.monotonic() < deadline
    assert {"provisioned-1": 5} == spread(mitmdump, "provisioned", 5)


@pytest.mark.parametrize("api, h2", WAYS)
def test_a_cool_down_of_a_day_ends_with_one_probe(api: str, h2: bool, mitmdump: Mitmdump, azures: list[Simulator]) -> None:
    """A refused probe begins it anew; while a probe runs, the other requests go elsewhere; an answered one ends it."""
    path, body = APIS[api]
    body = {**body, "model": f"probe-{api}-{int(h2)}", "stream": True}
    azures[0].faults.next(status(429, retry_after=DAY), times=2)
    gate = Gate(before=None)
    deadline = time.monotonic() + PATIENCE
    with client(mitmdump, h2=h2) as http:
        while len(azures[0].requests) < 2:
            assert 200 == http.post(path, json=body).status_code
            assert time.monotonic() < deadline
        azures[0].faults.next(gate)
        probes: list[httpx.Response] = []

        def ask() -> None:
            with client(mitmdump, h2=h2) as another:
                while not gate.reached.is_set() and time.monotonic() < deadline:
                    probes.append(another.post(path, json=body))

        asking = threading.Thread(target=ask)
        asking.start()
        assert gate.reached.wait(PATIENCE)
        others = [http.post(path, json=body) for _ in range(3)]
        assert 3 == len(azures[0].requests)
        gate.release()
        asking.join(PATIENCE)
        after = http.post(path, json=body)
    assert {f"{body['model']}-1"} == {answer.headers["x-azure-openai-proxy-backend"] for answer in others}
    assert (f"{body['model']}-0", "probe") == tuple(probes[-1].headers[f"x-azure-openai-proxy-{name}"] for name in ("backend", "reason"))
    assert f"{body['model']}-0" == after.headers["x-azure-openai-proxy-backend"]


@pytest.mark.parametrize("api, h2", WAYS)
def test_the_true_time(api: str, h2: bool, mitmdump: Mitmdump, azures: list[Simulator]) -> None:
    """If no backend is left the client gets the shortest Retry-After, not the end of the cool-downs."""
    for azure, after in zip(azures, (DAY, 7200.0), strict=True):
        azure.faults.always(status(429, retry_after=after))
    path, body = APIS[api]
    with client(mitmdump, h2=h2) as http:
        for _ in range(2):  # the backends' answers, and the proxy's own
            refused = http.post(path, json={**body, "model": f"nobody-{api}-{int(h2)}"})
            assert 429 == refused.status_code
            assert 7000 < int(refused.headers["retry-after"]) <= 7200
            assert 7_000_000 < int(refused.headers["retry-after-ms"]) <= 7_200_000
