"""Entra ID tokens from a fake credential."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing import entra_tokens
from azure_openai_proxy.routing.entra_tokens import Key, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator


def backend(apiversion: str = "v1", host: str = "r.openai.azure.com", scope: str = "", kind: str = "cli") -> Backend:
    return Backend(name="a", base=Base("https", host, 443), apiversion=apiversion, entra=kind, scope=scope)


@pytest.mark.parametrize(
    "of, key",
    [
        (backend("v1"), Key("cli", "", "https://ai.azure.com/.default")),
        (backend("preview"), Key("cli", "", "https://ai.azure.com/.default")),
        (backend("2024-10-21"), Key("cli", "", "https://cognitiveservices.azure.com/.default")),
        (backend("v1", scope="mine"), Key("cli", "", "mine")),
        (backend("v1", "r.openai.azure.us"), Key("cli", "login.microsoftonline.us", "https://cognitiveservices.azure.us/.default")),
        (backend("2024-10-21", "r.openai.azure.cn"), Key("cli", "login.chinacloudapi.cn", "https://cognitiveservices.azure.cn/.default")),
        (
            backend("v1", "usgovvirginia.api.cognitive.microsoft.us"),
            Key("cli", "login.microsoftonline.us", "https://cognitiveservices.azure.us/.default"),
        ),
        (
            backend("v1", "front.example", "https://cognitiveservices.azure.us/.default"),
            Key("cli", "login.microsoftonline.us", "https://cognitiveservices.azure.us/.default"),
        ),
        (backend("v1", "front.company.us"), Key("cli", "", "https://ai.azure.com/.default")),
    ],
)
def test_scope_and_authority(of: Backend, key: Key) -> None:
    """Scope and authority follow from the API form and the cloud."""
    assert key == Key.of(of)


class Credential:
    """A credential with scripted results, each a token's lifetime in seconds or an error, that then waits for the next call."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers: Iterator[float | Exception] = iter(answers)
        self.asked: list[str] = []
        self.again = asyncio.Event()
        self.closed = False

    async def get_token(self, scope: str) -> object:
        self.asked.append(scope)
        answer = next(self.answers, None)
        if answer is None:
            self.again.set()
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, float)
        return SimpleNamespace(token=f"token-{len(self.asked)}", expires_on=1000 + answer)

    async def close(self) -> None:
        self.closed = True


async def test_a_token_is_kept_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old token is used until the new one arrives, and an expired token is never used."""
    now = [1000.0]
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr("azure_openai_proxy.routing.entra_tokens.asyncio.sleep", sleep)
    credential = Credential(3600.0, 100.0)
    tokens = Tokens(lambda *_: credential, lambda: now[0])
    assert None is tokens.token(backend())
    tokens.use([backend(), backend("v1", "other.openai.azure.com"), Backend(name="k", base=Base("https", "k", 443), apiversion="v1")])
    await tokens.first()
    await credential.again.wait()
    assert ("token-2", ["https://ai.azure.com/.default"] * 3) == (tokens.token(backend()), credential.asked)
    assert [3600 - entra_tokens.AHEAD, 50] == pauses
    now[0] = 1100
    assert None is tokens.token(backend())
    tokens.close()
    for _ in range(3):
        await real(0)
    assert credential.closed


async def test_failures(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A failure is retried after `RETRY` seconds and logged once a minute, with the remaining lifetime of the last token."""
    now = [1000.0]
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        assert entra_tokens.RETRY == seconds or seconds > 100
        await real(0)

    monkeypatch.setattr("azure_openai_proxy.routing.entra_tokens.asyncio.sleep", sleep)
    credential = Credential(ValueError("no\nidentity"), ValueError("again"), 600.0, ValueError())
    made = [credential]
    tokens = Tokens(lambda *_: made[0], lambda: now[0])
    tokens.use([backend()])
    await tokens.first()
    now[0] = 1030  # within the minute: not logged again
    await credential.again.wait()
    assert ["No token of Entra ID (cli, https://ai.azure.com/.default): no identity"] == caplog.messages
    tokens._log_failure(Key.of(backend()), next(iter(tokens._kept.values())), ValueError())
    now[0] = 1100
    tokens._log_failure(Key.of(backend()), next(iter(tokens._kept.values())), ValueError())
    assert "the last one is good for 500 s: ValueError" in caplog.messages[-1]
    tokens.close()


async def test_the_wait_for_a_token_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential that never returns delays the first request by `PATIENCE` at most, and one that cannot be created is logged."""
    monkeypatch.setattr(entra_tokens, "PATIENCE", 0.01)
    tokens = Tokens(lambda *_: Credential())
    tokens.use([backend()])
    await tokens.first()
    assert None is tokens.token(backend())
    tokens.close()
    await tokens.first()

    def fail(*_: str) -> Credential:
        raise ValueError

    broken = Tokens(fail)
    broken.use([backend()])
    await broken.first()
    broken.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["default", "managed_identity", "cli"])
async def test_azures_own_credentials(kind: str) -> None:
    """Each configurable kind creates a credential of azure-identity."""
    made = entra_tokens.credential(kind, "login.microsoftonline.us")
    assert type(made).__name__ == entra_tokens._CLASSES[kind]
    await made.close()
