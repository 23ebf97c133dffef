"""Fixtures for end-to-end tests: one simulated Azure, one decoy, and a mitmdump for each set of settings, shared by the tests.

The process that distributes the tests imports this file too, so slow imports are in the fixtures.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, Protocol

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from azure_simulator import Simulator
    from support.postgres import Postgres
    from support.processes import Decoy, Mitmdump
    from support.redis import RedisServer


hypothesis.settings.register_profile("default", deadline=None)  # no test depends on how fast the machine is
hypothesis.settings.register_profile("quick", max_examples=20, deadline=None)  # `make quick`
hypothesis.settings.register_profile("ci", max_examples=30, deadline=None, derandomize=True)  # `.ci/run`: each run generates the same
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


gc.disable()  # until all tests are imported: hardly an object of a module is garbage


def pytest_collection_finish() -> None:
    """Exclude the objects of all imported modules from garbage collections: many tests end with a complete one."""
    gc.freeze()
    gc.enable()


class Proxies(Protocol):
    """The mitmdump with these options, listening; started if no test before asked for the same. Azure is the simulator, by HTTP."""

    def __call__(self, *args: str, env: Mapping[str, str] = ..., **options: object) -> Mitmdump: ...


@pytest.fixture(scope="session")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mitmproxy's folder, with its CA."""
    from mitmproxy.certs import CertStore

    folder = tmp_path_factory.mktemp("mitmproxy")
    CertStore.from_store(folder, "mitmproxy", 2048)
    return folder


@pytest.fixture(scope="session")
def _azure() -> Iterator[Simulator]:
    from azure_simulator import Simulator

    with Simulator() as azure:
        yield azure


@pytest.fixture
def azure(_azure: Simulator) -> Simulator:
    """Azure as it was on the first day: no requests, no faults."""
    _azure.reset()
    return _azure


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Postgres]:
    from support.postgres import Postgres

    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """A running PostgreSQL server."""
    from support.postgres import missing

    if reason := missing():
        pytest.skip(reason)
    server: Postgres = request.getfixturevalue("_postgres")
    return server


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A running Redis or Valkey server without data."""
    from support.redis import RedisServer, missing

    if reason := missing():
        pytest.skip(reason)
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def _decoy() -> Iterator[Decoy]:
    from support.processes import Decoy

    decoy = Decoy()
    yield decoy
    decoy.close()


@pytest.fixture
def decoy(_decoy: Decoy) -> Decoy:
    """The listener that every mitmdump takes for api.openai.com, without a connection so far."""
    _decoy.accepted = 0
    return _decoy


class _Mitmdumps:
    """Those that were started, until AT_ONCE others were asked for since: each takes 80 MB."""

    AT_ONCE = 24

    def __init__(self) -> None:
        self._running: dict[object, Mitmdump] = {}
        self._ending: list[Mitmdump] = []

    def get(self, key: object, make: Callable[[], Mitmdump]) -> Mitmdump:
        mitmdump = self._running.pop(key, None) or make().start()
        self._running[key] = mitmdump
        self.end(but=self.AT_ONCE)
        return mitmdump

    def end(self, but: int = 0) -> None:
        """The next test does not wait for it: a process takes half a second to end."""
        for key in list(self._running)[: len(self._running) - but]:
            self._ending.append(self._running.pop(key))
            self._ending[-1].signal(signal.SIGINT)

    def wait(self) -> None:
        for mitmdump in self._ending:
            mitmdump.wait()


@pytest.fixture(scope="session")
def _mitmdumps() -> Iterator[_Mitmdumps]:
    mitmdumps = _Mitmdumps()
    yield mitmdumps
    mitmdumps.end()
    mitmdumps.wait()


@pytest.fixture
def proxy(
    azure: Simulator, decoy: Decoy, confdir: Path, tmp_path_factory: pytest.TempPathFactory, _mitmdumps: _Mitmdumps
) -> Iterator[Proxies]:
    from support.processes import Mitmdump

    used: list[Mitmdump] = []

    def proxy(*args: str, env: Mapping[str, str] | None = None, **options: object) -> Mitmdump:
        options = {"azure_openai_endpoint": azure.http_url} | options
        key = (args, frozenset((env or {}).items()), frozenset((name, str(value)) for name, value in options.items()))

        def make() -> Mitmdump:
            return Mitmdump(tmp_path_factory.mktemp("mitmdump"), confdir, options=options, env=env or {}, args=args, decoy_port=decoy.port)

        mitmdump = _mitmdumps.get(key, make)
        mitmdump.forget()
        used.append(mitmdump)
        return mitmdump

    yield proxy
    for mitmdump in used:
        mitmdump.check()
