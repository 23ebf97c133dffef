"""Reading the head of the client's request."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest

from azure_openai_proxy.errors import BadRequest
from support.exchanges import asking, chat, exchange


@pytest.mark.parametrize("version", ["v\r\nX: y", "2024-10-21 a", "2024-10-21&a=b", "junk", "2024-10-21-preview-2"])
@pytest.mark.parametrize("path", ["/openai/files", "/openai/v1/files", "/v1/files"])
def test_an_api_version_that_is_none_is_refused(version: str, path: str) -> None:
    """It would be written into Azure's query."""
    with pytest.raises(BadRequest, match="api-version") as refused:
        exchange().request(asking("GET", f"{path}?api-version={quote(version)}"))
    assert "api-version" == refused.value.param


@pytest.mark.parametrize("version", ["2024-10-21", "2025-04-01-PREVIEW", "v1", "preview", "latest", ""])
def test_an_api_version_that_azure_may_have_passes(version: str) -> None:
    """Azure says which it has."""
    assert exchange().request(asking("GET", f"/openai/files?api-version={version}")) is None


def test_an_upgrade_of_another_method_is_none() -> None:
    """Its body would be taken for a WebSocket's frames."""
    request = asking("POST", "/v1/chat/completions", chat(), connection="Upgrade", upgrade="websocket")
    assert exchange().request(request) is None
    assert ("upgrade" in request.headers, "connection" in request.headers) == (False, False)


@pytest.mark.parametrize(("replaced", "version"), [(frozenset({"2023-03-15-preview"}), "2024-10-21"), (frozenset(), "2023-03-15-preview")])
def test_a_version_that_azure_has_retired(replaced: frozenset[str], version: str) -> None:
    """By the option it becomes the configured one."""
    asked = exchange()
    asked.settings = replace(asked.settings, replace_apiversions=replaced)
    request = asking("POST", "/openai/deployments/d/chat/completions?api-version=2023-03-15-preview", b"{}")
    assert asked.request(request) is None
    assert f"/openai/deployments/d/chat/completions?api-version={version}" == request.path
