"""The models that a request names beside its own one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from mitmproxy import http

from azure_openai_proxy.api import large_bodies, operation
from azure_openai_proxy.config.clients import Client
from azure_openai_proxy.errors import Refused
from azure_openai_proxy.formats.json_scan import Turns
from azure_openai_proxy.gateway import named_models
from azure_openai_proxy.gateway.admission import Admission
from support.exchanges import JSON

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.teams import Teams
    from azure_openai_proxy.config.settings import Settings


def check(path: str, body: bytes, *in_query: str, models: tuple[str, ...] = ("gpt-4o",), headers: dict[str, str] | None = None) -> None:
    admission = Admission(cast("Teams", None), Client(name="alice", models=models), cast("Settings", None), ())
    call = operation.recognise("POST", path, JSON, body)
    assert call
    named_models.check_request(
        admission, call, in_query, http.Headers([(name.encode(), value.encode()) for name, value in (headers or {}).items()]), body, None
    )


@pytest.mark.parametrize(
    ("path", "body", "in_query", "headers"),
    [
        ("/v1/chat/completions", b'{"model":"o3"}', (), {}),
        ("/v1/chat/completions", b'{"model":"gpt-4o"}', ("gpt-4o", "o3"), {}),
        ("/v1/responses", b'{"model":"gpt-4o","tools":[{"type":"image_generation","model":"gpt-image-1"}]}', (), {}),
        ("/v1/responses", b'{"model":"gpt-4o"}', (), {"x-ms-oai-image-generation-deployment": "gpt-image-1"}),
        ("/v1/fine_tuning/jobs", b'{"model":"o3"}', (), {}),
    ],
)
def test_each_model_that_is_named_is_checked(path: str, body: bytes, in_query: tuple[str, ...], headers: dict[str, str]) -> None:
    """In the body, in the query, in the tools of a Responses request and in the header for them, and the base model of a job."""
    with pytest.raises(Refused, match="may not use it"):
        check(path, body, *in_query, headers=headers)
    check(path, body, *in_query, models=(), headers=headers)


def test_the_clients_own_models_pass() -> None:
    """Other strings in a body are not models."""
    check("/v1/responses", b'{"model":"gpt-4o","tools":[{"type":"function","name":"o3"}]}', "gpt-4o")


@pytest.mark.parametrize("body", [b"--b", b"", b"[" * 100_000, b"{}"])
def test_a_body_that_names_none(body: bytes) -> None:
    """A body that is no JSON names no models."""
    assert [] == named_models.named(body, ("model",), None)


async def test_large_bodies_name_the_same() -> None:
    """As scanned in slices."""
    body = b'{"model":"m","tools":[{"model":"i"},{}]}'
    places = ("model", named_models.OF_TOOLS)
    scanned = await large_bodies.read(Turns(), body, *places)
    assert ["m", "i"] == named_models.named(body, places, None) == named_models.named(body, places, scanned)
