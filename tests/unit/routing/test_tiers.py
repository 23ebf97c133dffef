"""Refusals of a service tier."""

from __future__ import annotations

import json

import pytest
from mitmproxy import http

from azure_openai_proxy.routing import tiers


@pytest.mark.parametrize(
    "status, error, refused",
    [
        (400, {"message": "Invalid service_tier argument"}, True),
        (400, {"message": "no", "param": "service_tier"}, True),
        (400, {"message": "Flex processing is not available for this model."}, True),
        (422, {"message": "The priority tier is not enabled for this deployment."}, True),
        (400, {"message": "Unsupported value: 'service_tier' does not support 'flex' with this model."}, True),
        (429, {"message": "Invalid service_tier argument"}, False),
        (400, {"message": "Invalid 'temperature'", "param": "temperature"}, False),
        (400, {"message": "'flex' is not supported with this model."}, True),
        (400, {"message": "'priority' is not supported with this model."}, False),
        (400, {"message": "'flex' is not supported here.", "param": "text.verbosity"}, False),
        (400, {"message": "flex your muscles"}, False),
        (400, {"message": "service_tier" + "x" * 1000}, False),
        (400, {"message": None}, False),
    ],
)
def test_a_refusal(status: int, error: dict[str, str | None], refused: bool) -> None:
    """By its parameter, or by a short message about the tier."""
    assert refused is tiers.is_refusal(http.Response.make(status, json.dumps({"error": error})), "flex")


def test_a_refusal_without_a_body() -> None:
    """It says nothing about the tier."""
    assert not tiers.is_refusal(http.Response.make(400), "flex")


def test_the_name_of_a_deployment() -> None:
    """Requests of a tier have limits and cool-downs of their own."""
    assert ("d", "d (flex)") == (tiers.entry("d", ""), tiers.entry("d", "flex"))
