"""Demonstration: a chat completion and a stream from an OpenAI client through the proxy to a simulated Azure (`make demo`).

With `--web` the proxy runs in mitmweb until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import webbrowser
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import agent_session  # noqa: E402 - after sys.path has the tests, for the simulator
import openai  # noqa: E402
from flows import of_each_kind  # noqa: E402

from azure_simulator import Delay, Simulator  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Received

WIDTH = 80
STARTED_WITHIN = 30.0  # seconds
BETWEEN_CHUNKS = 0.12  # seconds, as long as a model takes
INTERESTING = {"host", "api-key", "authorization", "content-type", "user-agent"}
COLOURS = {"plain": "", "bold": "1", "dim": "2", "client": "36", "proxy": "35", "azure": "34", "good": "32"}


def paint(text: str, colour: str) -> str:
    """The text in colour on a terminal; plain if the output is not a terminal or NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or not COLOURS[colour]:
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def say(text: str = "", colour: str = "plain", *, end: str = "\n") -> None:
    print(paint(text, colour), end=end, flush=True)


def title(text: str) -> None:
    say()
    say(f"── {text} {'─' * (WIDTH - len(text) - 4)}", "bold")


def lane(who: str, what: str, colour: str, *, end: str = "\n") -> None:
    say()
    say(f"{who:<8}", colour, end="")
    say(what, end=end)


def body(value: Any) -> None:
    """Print JSON, wrapped and indented."""
    for line in textwrap.wrap(json.dumps(value, ensure_ascii=False), WIDTH - 8, break_on_hyphens=False):
        say(" " * 8 + line, "dim")


def masked(name: str, value: str) -> str:
    return f"{value[:4]}{'·' * 12}" if name in ("api-key", "authorization") else value


def show(received: Received) -> None:
    """Print the request that Azure received."""
    lane("azure", f"{received.method} {received.bare_path}", "azure")
    if "?" in received.path:
        say(f"{'':8}?{received.path.partition('?')[2]}")
    for name, value in received.headers:
        if name.lower() in INTERESTING:
            say(f"{'':8}{name.lower()}: {masked(name.lower(), value)}"[:WIDTH], "dim")
    body(received.json)


class Proxy(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    printed: list[str]


@contextmanager
def proxy(tool: str, azure: Simulator, *args: str) -> Iterator[Proxy]:
    """A real mitmdump (or mitmweb) with the addon, on a free port."""
    with tempfile.TemporaryDirectory(prefix="azure-openai-proxy-") as folder:
        command = [
            *(str(Path(sys.executable).with_name(tool)), "-s", str(ROOT / "addon" / "azure_openai.py")),
            *("--listen-host", "127.0.0.1", "--listen-port", "0", "--set", f"confdir={folder}", *args),
        ]
        others = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_OPENAI_", "OPENAI_"))}
        env = others | {"AZURE_OPENAI_ENDPOINT": azure.http_url, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        printed: list[str] = []
        try:
            yield Proxy(address(process, printed), process, printed)
        except (openai.APIError, TimeoutError) as error:
            sys.exit(f"\n{error} The proxy printed:\n{''.join(printed)}")
        finally:
            process.terminate()
            process.wait()


def for_a_browser() -> tuple[str, ...]:
    """mitmweb's options. It does not print the port that it gets for port 0, so a free port is chosen here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return ("--no-web-open-browser", "--web-port", str(port))


def address(process: subprocess.Popen[str], printed: list[str]) -> str:
    """Wait until the proxy listens. Its output is read until it ends, because a full pipe would block it.

    Raises:
        TimeoutError: the proxy ended or does not listen in time.
    """
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if match := re.search(r"proxy listening at (\S+)\.", line):
                found.put(match[1])
        found.put("")

    threading.Thread(target=read, daemon=True).start()
    with suppress(queue.Empty):
        if listening := found.get(timeout=STARTED_WITHIN):
            return f"http://{listening}"
    raise TimeoutError("The proxy does not listen.")


def chat(client: openai.OpenAI, azure: Simulator) -> None:
    title("A chat completion")
    question = "What does a proxy do?"
    lane("client", 'client.chat.completions.create(model="gpt-3.5-turbo", …)', "client")
    body([{"role": "user", "content": question}])
    answer = client.chat.completions.create(model="gpt-3.5-turbo", messages=[{"role": "user", "content": question}])
    show(azure.requests[-1])
    lane("client", str(answer.choices[0].message.content), "client")
    usage = answer.usage.total_tokens if answer.usage else 0
    say(f"{'':8}model {answer.model}, {answer.choices[0].finish_reason}, {usage} tokens", "dim")


def stream(client: openai.OpenAI, azure: Simulator) -> None:
    title("A stream")
    azure.faults.next(Delay(BETWEEN_CHUNKS, chunk="each"))
    question = "Every word of this comes back to you as soon as Azure has written it."
    lane("client", 'client.chat.completions.create(model="gpt-4o", stream=True, …)', "client")
    chunks = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": question}], stream=True)
    show(azure.requests[-1])
    lane("client", "", "client", end="")
    column, count = 8, 0
    for chunk in chunks:
        count += 1
        text = chunk.choices[0].delta.content or ""
        if column + len(text) > WIDTH:
            say(f"\n{'':7}", end="")
            column = 7
        say(text, "good" if count % 2 else "plain", end="")
        column += len(text)
    say()
    say(f"{'':8}{count} chunks, each shown on arrival", "dim")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--web", action="store_true", help="show the requests in mitmweb")
    web = arguments.parse_args().web
    with Simulator() as azure, proxy("mitmweb" if web else "mitmdump", azure, *(for_a_browser() if web else ())) as running:
        title("Azure OpenAI Proxy")
        lane("proxy", f"{running.url}  ← any OpenAI client", "proxy")
        lane("azure", f"{azure.http_url}  a simulated Azure OpenAI", "azure")
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=azure.key) as client:
            chat(client, azure)
            stream(client, azure)
            if web:
                of_each_kind(client.with_options(max_retries=0), azure)
                agent_session.run(client, azure)
        if web:
            title("In your browser, until Ctrl-C")
            address = next(line.split()[-1] for line in running.printed if "Web server listening at" in line)
            threads = address.replace("/?", "/azure/?")
            say(f"\n  {threads}  ← the session of an agent, as threads\n  {address}  ← all requests\n")
            if sys.stdout.isatty():
                webbrowser.open(threads)
            with suppress(KeyboardInterrupt):
                running.process.wait()
        else:
            title("With your Azure")
            say("\n  AZURE_OPENAI_ENDPOINT=https://YOURS.openai.azure.com make run\n")


if __name__ == "__main__":
    main()
