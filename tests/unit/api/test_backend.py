"""Parsing of endpoints in the forms that users paste."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.api.backend import Backend, Base, parse_apiversion, parse_base, parse_endpoint, parse_host
from azure_openai_proxy.errors import SettingsError

AZURE = Base("https", "r.openai.azure.com", 443)
FRONT = Base("https", "x.azure-api.net", 443, "/my/prefix")


@pytest.mark.parametrize(
    "text, base, apiversion",
    [
        ("https://r.openai.azure.com", AZURE, None),
        ("https://r.openai.azure.com/", AZURE, None),
        ("https://r.openai.azure.com//", AZURE, None),
        ("HTTPS://R.OpenAI.Azure.com:443", AZURE, None),
        ("r.openai.azure.com", AZURE, None),
        ("//r.openai.azure.com/", AZURE, None),
        ("https://r.openai.azure.com./", AZURE, None),
        ("https://r.openai.azure.com/openai", AZURE, None),
        ("https://r.openai.azure.com/openai/", AZURE, None),
        ("https://r.openai.azure.com/openai/v1", AZURE, "v1"),
        ("https://r.openai.azure.com/openai/v1/", AZURE, "v1"),
        ("https://r.openai.azure.com/openai/v1/chat/completions?api-version=preview", AZURE, "preview"),
        ("https://r.openai.azure.com/openai/v1/chat/completions?api-version=2024-06-01", AZURE, "v1"),
        ("https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-06-01", AZURE, "2024-06-01"),
        ("https://r.openai.azure.com/openai/deployments/d/chat/completions?API-Version=2025-04-01-Preview", AZURE, "2025-04-01-preview"),
        ("https://r.openai.azure.com/openai/files?api-version=2024-06-01", AZURE, "2024-06-01"),
        ("https://r.openai.azure.com/?api-version=", AZURE, None),
        ("https://r.services.ai.azure.com/api/projects/p", Base("https", "r.services.ai.azure.com", 443), None),
        ("https://r.services.ai.azure.com/api/projects/p/openai/v1/", Base("https", "r.services.ai.azure.com", 443), "v1"),
        ("https://westus.api.cognitive.microsoft.com/", Base("https", "westus.api.cognitive.microsoft.com", 443), None),
        ("https://x.azure-api.net/my/prefix", FRONT, None),
        ("https://x.azure-api.net/my//prefix/", FRONT, None),
        ("https://x.azure-api.net/my/prefix/openai", FRONT, None),
        ("https://x.azure-api.net/my/prefix/openai/v1/", FRONT, "v1"),
        ("https://x.azure-api.net/my/prefix/openai/deployments/d/chat/completions?api-version=2024-06-01", FRONT, "2024-06-01"),
        ("https://x.azure-api.net/openai/team", FRONT._replace(prefix="/openai/team"), None),
        ("https://x.azure-api.net/openai/openai/v1", FRONT._replace(prefix="/openai"), "v1"),
        ("https://x.azure-api.net/my/prefix/openai/responses?api-version=2025-04-01-preview", FRONT, "2025-04-01-preview"),
        ("https://x.azure-api.net/my/prefix/openai/files/f/content?api-version=2024-10-21", FRONT, "2024-10-21"),
        ("https://x.azure-api.net/my/prefix/OpenAI/V1/chat/completions", FRONT, "v1"),
        ("https://x.azure-api.net/my/prefix/openai/v1/openai/v1", FRONT, "v1"),
        ("wss://x.azure-api.net/my/prefix/openai/realtime?api-version=2025-04-01-preview&deployment=d", FRONT, "2025-04-01-preview"),
        ("ws://127.0.0.1:9000/openai/v1/realtime?model=d", Base("http", "127.0.0.1", 9000), "v1"),
        ("https://r.openai.azure.us/openai/responses?api-version=2024-10-21", Base("https", "r.openai.azure.us", 443), "2024-10-21"),
        ("https://r.cognitiveservices.azure.us/x", Base("https", "r.cognitiveservices.azure.us", 443), None),
        ("https://r.services.ai.azure.us/api/projects/p", Base("https", "r.services.ai.azure.us", 443), None),
        ("https://r.cognitiveservices.azure.cn/openai/v1", Base("https", "r.cognitiveservices.azure.cn", 443), "v1"),
        ("https://chinaeast2.api.cognitive.azure.cn/x", Base("https", "chinaeast2.api.cognitive.azure.cn", 443), None),
        ("https://x.azure-api.net/a%20b", FRONT._replace(prefix="/a%20b"), None),
        ("http://127.0.0.1:9000", Base("http", "127.0.0.1", 9000), None),
        ("127.0.0.1:9000", Base("https", "127.0.0.1", 9000), None),
        ("localhost", Base("https", "localhost", 443), None),
        ("http://simulator", Base("http", "simulator", 80), None),
        ("simulator:9000", Base("https", "simulator", 9000), None),
        ("http://[::1]:9000/x", Base("http", "::1", 9000, "/x"), None),
        ("http://[0:0::1]", Base("http", "::1", 80), None),
        ("https://münchen.example", Base("https", "xn--mnchen-3ya.example", 443), None),
    ],
)
def test_endpoint(text: str, base: Base, apiversion: str | None) -> None:
    """Every form of an endpoint gives the server, the prefix and the named version."""
    assert (base, apiversion) == parse_endpoint(text)


@pytest.mark.parametrize(
    "text, right",
    [
        ("", "as in RESOURCE.openai.azure.com"),
        ("ftp://r.openai.azure.com", "https:// or http://"),
        ("https://", "as in RESOURCE.openai.azure.com"),
        ("https:///openai", "as in RESOURCE.openai.azure.com"),
        ("https://user:sesame@r.openai.azure.com", "azure_openai_token"),
        ("https://sesame@r.openai.azure.com", "azure_openai_token"),
        ("https://r.openai azure.com", "a control character: write it as in"),
        ('"https://r.openai.azure.com"', "a control character: write it as in"),
        ("https://<resource>.openai.azure.com", "a control character: write it as in"),
        ("https://r.openai.azure.com/\nx", "a control character: write it as in"),
        ("https://r.openai.azure.com/\x00", "a control character: write it as in"),
        ("https://r.openai.azure.com/#top", "write it without"),
        ("https://*.openai.azure.com", "letters, digits and hyphens"),
        ("https://-r.openai.azure.com", "letters, digits and hyphens"),
        ("https://r..openai.azure.com", "letters, digits and hyphens"),
        ("https://" + "a" * 64 + ".com", "letters, digits and hyphens"),
        ("https://" + "a." * 130 + "com", "letters, digits and hyphens"),
        ("https://1.2.3.400", "http://127.0.0.1:9000"),
        ("https://[::1", "http://[::1]:9000"),
        ("https://[zz]", "https://[::1]:8443"),
        ("https://[::1]x", "http://[::1]:9000"),
        ("https://::1", "http://[::1]:9000"),
        ("https://r.openai.azure.com:0", "between 1 and 65535"),
        ("https://r.openai.azure.com:65536", "between 1 and 65535"),
        ("https://r.openai.azure.com:port", "host and port"),
        ("mailto:x@example.com", "azure_openai_token"),
        ("https:/r.openai.azure.com", "write it with https://"),
        ("0123456789abcdef0123456789abcdef", "write it with https://"),
        ("https://x.azure-api.net/a/../b", "path"),
        ("https://x.azure-api.net/%zz", "path"),
        ("https://x.azure-api.net/ü", "path"),
        ("https://x.azure-api.net/p?api-version=latest", "YYYY-MM-DD"),
    ],
)
def test_endpoint_refused(text: str, right: str) -> None:
    """An invalid endpoint is refused with a one-line error that names a valid form and repeats no text of the input."""
    with pytest.raises(SettingsError) as caught:
        parse_endpoint(text)
    line = str(caught.value)
    assert right in line
    assert "\n" not in line
    assert "sesame" not in line
    assert "0123456789abcdef" not in line


@given(st.text(max_size=40), st.sampled_from(["", "https://", "http://h.example/", "https://[", "https://h.example:"]))
def test_endpoint_total(text: str, before: str) -> None:
    """Any text is refused or gives an endpoint whose written form parses to the same endpoint."""
    try:
        base, _ = parse_endpoint(before + text)
    except SettingsError:
        return
    assert base == parse_base(str(base))[0]


@pytest.mark.parametrize(
    "base, netloc, url",
    [
        (AZURE, "r.openai.azure.com", "https://r.openai.azure.com"),
        (FRONT, "x.azure-api.net", "https://x.azure-api.net/my/prefix"),
        (Base("http", "::1", 80), "[::1]", "http://[::1]"),
        (Base("http", "::1", 443), "[::1]:443", "http://[::1]:443"),
    ],
)
def test_base_written(base: Base, netloc: str, url: str) -> None:
    """The port is written only if it is not the scheme's default, and IPv6 addresses have brackets."""
    assert (netloc, url) == (base.netloc, str(base))


@pytest.mark.parametrize("text", ["2024-10-21", "2025-04-01-preview", "v1", "preview", "2022-12-01"])
def test_apiversion(text: str) -> None:
    """Dated versions, v1 and preview are accepted in any letter case."""
    assert text == parse_apiversion(text) == parse_apiversion(text.upper())


@pytest.mark.parametrize("text", ["", "latest", "2024", "2024-13-01", "2024-02-30-preview", "2024-10-21-beta", "20241021", "v2"])
def test_apiversion_refused(text: str) -> None:
    """Any other version is refused, also a date that does not exist, and the error shows a valid one."""
    with pytest.raises(SettingsError, match="2024-10-21"):
        parse_apiversion(text)


def test_host_of_ipv6() -> None:
    """IPv6 addresses are accepted with and without brackets."""
    assert "::1" == parse_host("::1") == parse_host("[::1]")


def test_backend_hides_its_token() -> None:
    """A backend's repr, which may be logged, does not contain the key."""
    assert "sesame" not in repr(Backend(name="a", base=AZURE, token="sesame", apiversion="v1"))
