"""The table."""

import pytest
from azure_openai_proxy import endpoints


@pytest.mark.parametrize("path", ["/v1/chat/completions", "//v1/chat/completions", "/v1//chat/completions/", "/chat/completions"])
def test_a_base_url_may_be_written_in_any_way(path: str) -> None:
    """With and without /v1, with doubled and closing slashes."""
    assert ("chat", "completions") == endpoints.segments(path)


@pytest.mark.parametrize("row", endpoints.ENDPOINTS, ids=lambda row: row.operation)
def test_every_row_is_found(row: endpoints.Endpoint) -> None:
    """A row that another one hides would be dead."""
    found = endpoints.find(row.method, endpoints.segments(row.path))
    assert found is not None
    assert row == found[0]


def test_values_are_read_from_the_path() -> None:
    """`{model}` stands for one segment."""
    found = endpoints.find("GET", ("models", "gpt-4o"))
    assert found is not None
    assert {"model": "gpt-4o"} == found[1]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/embeddings"), ("POST", "/v1/nothing"), ("GET", "/v1/models/a/b")])
def test_no_row_names_it(method: str, path: str) -> None:
    """Another method or another length is another operation."""
    assert endpoints.find(method, endpoints.segments(path)) is None


def test_the_v1_form_is_the_same_path() -> None:
    """A row says nothing that the rule says."""
    assert "/openai/v1/embeddings" == endpoints.Endpoint("POST", "/embeddings").v1
