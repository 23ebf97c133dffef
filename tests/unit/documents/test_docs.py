"""What docs/ tells people to type."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode

from azure_openai_proxy.cli import client_env
from azure_openai_proxy.config import sources
from azure_openai_proxy.config.prices import read_file
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS_PAGE = (ROOT / "docs" / "connecting-clients.md").read_text()
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()


def blocks(text: str) -> list[str]:
    """The lines of the blocks for a shell, those that go on over several as one."""
    found = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    return [
        line.replace('"$(command -v azure-openai-proxy)"', "azure-openai-proxy") for line in lines
    ]  # for sudo, which has a path of its own


STARTS = [line for line in blocks(CLIENTS_PAGE) if re.match(r"(sudo -E )?azure-openai-proxy\b", line)]
CLIENTS = re.findall(r"azure-openai-proxy (?:env|doctor)[^)`\"]*", "\n".join(blocks(CLIENTS_PAGE)))


@pytest.mark.parametrize("line", STARTS)
def test_the_command_is_one_of_mitmproxy_s(line: str) -> None:
    """Its modes and options exist."""
    arguments = shlex.split(line, comments=True)
    arguments = arguments[arguments.index("azure-openai-proxy") + 1 :]
    given = sources.command_line(arguments, Options())
    assert given.names or not arguments
    assert all(ProxyMode.parse(mode) for mode in given.modes)


def test_every_mode_has_its_block() -> None:
    """Each of those that an OpenAI client can come by."""
    modes = {ProxyMode.parse(found).type_name for found in re.findall(r"--mode (\S+)", "\n".join(STARTS))}
    assert {"reverse", "socks5", "transparent", "wireguard", "local", "upstream"} == modes


@pytest.mark.parametrize("line", CLIENTS)
def test_the_client_s_command_exists(line: str) -> None:
    """With the options that are named."""
    assert client_env._arguments(shlex.split(line)[1:]).command in ("env", "doctor")


def test_the_price_file(tmp_path: Path) -> None:
    """The example of docs/observability.md is a valid file."""
    (example,) = re.findall(r"(?s)```yaml\n(.*?)```", (ROOT / "docs" / "observability.md").read_text())
    (tmp_path / "prices.yaml").write_text(example)
    prices = read_file(str(tmp_path / "prices.yaml"))
    assert prices
    assert ["gpt-4o", "gpt-5.4", "my-router"] == [*prices.models]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bdeploy/[\w./-]*\w", CLIENTS_PAGE + DEPLOY))))
def test_the_file_is_there(path: str) -> None:
    """Each linked file exists."""
    assert (ROOT / path).exists()


PAPERS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(paper: Path) -> None:
    """A document names tests and modules by their paths, which change when files move."""
    text = paper.read_text()
    named = set(re.findall(r"\b(?:tests|tools|addon|docs)/[\w./-]*\.(?:py|md|txt|png)\b", text))
    assert [] == sorted(path for path in named if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists())


def anchors(text: str) -> set[str]:
    """The link targets of a document's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("paper", [*PAPERS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(paper: Path) -> None:
    """Relative links between documents have a file, and the fragment of one is a heading of that file."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```", "", paper.read_text())):
        name, _, fragment = link.partition("#")
        target = paper.parent / name if name else paper
        if "://" not in link and not (target.exists() and (not fragment or fragment in anchors(target.read_text()))):
            broken.append(link)
    assert [] == broken


def test_each_protection_names_its_tests() -> None:
    """A protection that SECURITY.md claims has a test, and the document states its limits."""
    threats = (ROOT / "SECURITY.md").read_text().partition("## Threats")[2].partition("## Not protected")[0].split("\n### ")[1:]
    assert 8 <= len(threats)
    for threat in threats:
        assert "- Tests: `tests/" in threat, threat
        assert "- Limits: " in threat, threat
