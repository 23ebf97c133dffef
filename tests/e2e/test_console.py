"""What a person sees of our flows in mitmproxy's console."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import openai
import pytest

from support.console import TMUX, console
from support.renamed import copy_package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai.types.chat import ChatCompletionMessageParam

    from azure_simulator import Simulator
    from support.console import Console

pytestmark = pytest.mark.skipif(TMUX is None, reason="no tmux: `apt-get install tmux` brings it")

KEY = "sk-client-s-own-0123"
USAGE = r"\d+\+\d+ tokens(?: \([\d,]+ cached\))? · \$0\.\d+"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two three"}]


@pytest.fixture
def screen(azure: Simulator, confdir: Path, tmp_path: Path) -> Iterator[Console]:
    """The list of three flows: a chat, a stream, a failure."""
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_token": azure.key, "azure_openai_model_mapper": "fast=gpt-4o"}
    with console(tmp_path, confdir, **options) as screen:
        with openai.OpenAI(base_url=f"{screen.url}/v1", api_key=KEY, max_retries=0) as client:
            client.chat.completions.create(model="fast", messages=MESSAGES)
            for _ in client.chat.completions.create(model="fast", messages=MESSAGES, stream=True):
                pass
            with suppress(openai.NotFoundError):
                client.chat.completions.create(model="gpt-9", messages=MESSAGES)
        assert [azure.key] * 3 == [request.header("api-key") for request in azure.requests]
        screen.wait_for(r"\[1/3\][\s\S]*Flow: ")
        yield screen


def test_each_flow_says_what_it_was(screen: Console) -> None:
    """The list has deployments, states and marks, and below each flow its comment; the details have it too, and stay short."""
    screen.wait_for(
        r">>.* POST .* /openai/deployments/gpt-4o/chat/completions\S* +200 +application/json .*\n"
        rf" +fast → gpt-4o · {USAGE} · \d+\.\d+ s\n"
        r" .* POST .* /openai/deployments/gpt-4o/chat/completions\S* +200 +text/event-stream .*\n"
        rf" +fast → gpt-4o · {USAGE} · first chunk \d+\.\d+ s\n"
        r" .* POST .* /openai/deployments/gpt-9/chat/completions\S* +404 +application/json .*🔴\n"
        r" +gpt-9 · 404 · \d+\.\d+ s\n"
    )
    screen.press("Enter", "Tab", "Tab")
    screen.wait_for(rf"\nComment: fast → gpt-4o · {USAGE} · \d+\.\d+ s\n")
    screen.press("Space")
    screen.wait_for(rf"\nComment: fast → gpt-4o · {USAGE} · first chunk \d+\.\d+ s\n[\s\S]* azure_openai_azures +… \d+\.\d kB\n")
    screen.press("Space")
    screen.wait_for(r"\nComment: gpt-9 · 404 · ")
    screen.press("q")
    screen.command("set view_filter='~comment first.chunk'")
    screen.wait_for(r"\n>>.* text/event-stream .*\n.*\n\n[\s\S]*\[1/1\]")


def test_a_console_with_a_renamed_window(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """If the console's window has another name, its events have one warning, and the proxy translates requests."""
    assert copy_package("mitmproxy", "window", tmp_path / "packages")
    with console(tmp_path, confdir, tmp_path / "packages", azure_openai_endpoint=azure.http_url) as screen:
        with openai.OpenAI(base_url=f"{screen.url}/v1", api_key=azure.key, max_retries=0) as client:
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        screen.press("E")
        events = screen.wait_for(r"^Events[\s\S]* client disconnect").string
        warnings = [line for line in events.splitlines() if "differs from those known" in line]
        assert 1 == len(warnings)
        assert "no attribute 'window'" in warnings[0]


def test_a_stream_is_a_conversation(screen: Console) -> None:
    """Both views choose themselves."""
    screen.press("j", "Enter")
    screen.wait_for(r"\nConversation +\[m:auto\]\nfast · stream.*\n\n── system\nBe brief\.\n\n── user\none two three\n")
    screen.press("Tab")
    screen.wait_for(
        r"\nAnswer +\[m:auto\]\n── assistant\nYou said: one two three\n\n── end\nstop · \d+ \+ \d+ tokens · gpt-4o.*\n"
        r"\n── chunks\nfirst after [\s\S]*\n\n── sent by Azure and dropped by the proxy\n"
    )


def test_no_key_is_shown(azure: Simulator, screen: Console) -> None:
    """Neither the client's nor Azure's: in no view, no output of a command, not among the events, not among the options."""
    screen.press("Enter")
    screen.wait_for(r"\napi-key: +\[key\]\n")
    screen.command("console.flowview.mode.set 'as the client sent it'")
    screen.wait_for(r"\nPOST /v1/chat/completions\n[\s\S]*\nauthorization: Bearer \[key\]\n")
    screen.press("Tab")
    screen.command("console.flowview.mode.set 'as azure sent it'")
    screen.wait_for(r"\n200 OK\ncontent-type: application/json\n")
    screen.press("C-f")
    screen.wait_for("prompt_filter_results")
    screen.press("Tab")
    screen.wait_for(r"\nComment: ")
    screen.press("q")
    screen.command("azure.explain @focus")
    screen.wait_for(r"│  mapping  fast → gpt-4o +│[\s\S]*│  answer   200 · fast → gpt-4o · ")
    screen.press("q")
    screen.command("azure.backends")
    screen.wait_for(r"│default http://127\.0\.0\.1:\d+: healthy, 0 in flight")
    screen.press("q")
    screen.command("azure.export curl @focus")
    screen.wait_for(r"│  --header \"api-key: \$AZURE_OPENAI_API_KEY\"")
    screen.press("q", "E")
    assert "error" not in screen.wait_for(r"^Events[\s\S]* client connect").string
    screen.press("q", "O")
    screen.command("console.nav.start")
    screen.wait_for(r"^Options[\s\S]*\n\W*azure_openai_allowed_destinations ")
    screen.command("console.nav.pagedown")
    screen.wait_for(r"^Options[\s\S]*\n\W*azure_openai_proxy_mode ")
    screen.command("console.nav.pagedown")
    screen.wait_for(r"^Options[\s\S]*\n\W*azure_openai_token +\(hidden\)")
    seen = screen.wait_for("azure_openai_token", screen.everything).string
    assert [] == [key for key in (KEY, azure.key) if key in seen]
    screen.press("q")
    screen.command("azure.export curl @focus true")  # the command prints the key on request, and this test would have found it
    screen.wait_for(azure.key, screen.everything)
