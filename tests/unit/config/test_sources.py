"""The sources of settings: precedence, command line, files and names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mitmproxy.options import Options

from azure_openai_proxy.config import settings as values
from azure_openai_proxy.config import sources
from azure_openai_proxy.config.settings import Found
from azure_openai_proxy.config.sources import ConfigFile
from azure_openai_proxy.errors import SettingsError
from support.configuration import ENDPOINT, KEY, gather, settings

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.usefixtures("folder")

LEVELS = ("changed", "set", "environ", "alias", "file", "confdir")


@pytest.mark.parametrize("strongest", range(len(LEVELS)))
def test_precedence(strongest: int, folder: Path) -> None:
    """The precedence is: change while running, --set, environment, its alias, mitm_config.yaml, mitmproxy's config.yaml."""
    there = LEVELS[strongest:]
    if "confdir" in there:
        (folder / "conf" / "config.yaml").write_text("azure_openai_token: confdir")
    if "file" in there:
        (folder / "mitm_config.yaml").write_text("azure_openai_token: file")
    variables = {"alias": "AZURE_OPENAI_API_KEY", "environ": "AZURE_OPENAI_TOKEN"}
    found, _ = gather(
        *(["--set", "azure_openai_token=set"] if "set" in there else []),
        environ={"AZURE_OPENAI_ENDPOINT": ENDPOINT} | {variable: level for level, variable in variables.items() if level in there},
        changed={"azure_openai_token": Found("changed", "set while running")} if "changed" in there else {},
    )
    assert LEVELS[strongest] == values.resolve(found).token


@pytest.mark.parametrize(
    "arguments, environ, file, token",
    [
        ([], {"AZURE_OPENAI_TOKEN": "", "AZURE_OPENAI_API_KEY": "alias"}, "", "alias"),
        ([], {"AZURE_OPENAI_TOKEN": " \r\n"}, "azure_openai_token: file", "file"),
        ([], {"AZURE_OPENAI_TOKEN": "key\r\n"}, "", "key"),
        ([], {}, "azure_openai_token: 12345", "12345"),
        ([], {}, "azure_openai_token:", ""),
        ([], {}, "azure_openai_token: (hidden)", ""),
        (["--set=azure_openai_token=set"], {"AZURE_OPENAI_TOKEN": "env"}, "", "set"),
        (["--set", "azure_openai_token="], {"AZURE_OPENAI_TOKEN": "env"}, "azure_openai_token: file", ""),
        (["--set", "azure_openai_token=a=b"], {}, "", "a=b"),
    ],
)
def test_token(arguments: list[str], environ: Mapping[str, str], file: str, token: str, folder: Path) -> None:
    """An empty variable counts as unset, a line end is trimmed, and an empty `--set name=` means no key."""
    (folder / "mitm_config.yaml").write_text(file)
    assert token == settings(*arguments, **environ).token


@pytest.mark.parametrize(
    "arguments, value",
    [([], True), (["azure_openai_normalize"], True), (["azure_openai_normalize=toggle"], False), (["azure_openai_normalize=false"], False)],
)
def test_set_of_a_switch(arguments: list[str], value: bool) -> None:
    """A boolean is set as in mitmproxy: without a value, or with true, false or toggle."""
    assert value == settings(*(text for argument in arguments for text in ("--set", argument))).normalize


def test_set_of_a_list() -> None:
    """--set of a list can be repeated, and empties the list without a value, as in mitmproxy."""
    two = ("--set", "azure_openai_hosts=a.example", "--set", "azure_openai_hosts=b.example")
    assert {"api.openai.com", "a.example", "b.example"} == settings(*two).hosts
    assert {"api.openai.com"} == settings("--set", "azure_openai_hosts", AZURE_OPENAI_HOSTS="a.example").hosts


@pytest.mark.parametrize("given", [["azure_openai_proxy_mode"], ["azure_openai_proxy_mode=azure", "azure_openai_proxy_mode=openai"]])
def test_set_without_one_value(given: list[str]) -> None:
    """--set of a string needs exactly one value."""
    with pytest.raises(SettingsError, match=r"azure_openai_proxy_mode \(--set\): write it once"):
        settings(*(text for one in given for text in ("--set", one)))


@pytest.mark.parametrize(
    "text, right",
    [
        ("just text", "is not a mapping"),
        ("- a\n- b", "is not a mapping"),
        ("1: x", "is not a mapping"),
        (f"azure_openai_endpoint: x\nazure_openai_token: *{KEY}", "line 2: not YAML"),
        (f"azure_openai_token: '{KEY}", "not YAML"),
        ("azure_openai_token: a\nazure_openai_token: b", "line 2: not YAML"),
        ("azure_openai_apiversion: 2024-02-31", "not YAML"),
        ("\x00", "not YAML"),
        ("azure_openai_config: other.yaml", "AZURE_OPENAI_CONFIG"),
    ],
)
def test_file_refused(text: str, right: str, folder: Path) -> None:
    """A file that is not a YAML mapping is rejected in one line that names it and quotes none of it."""
    (folder / "mitm_config.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        gather()
    assert right in str(caught.value)
    assert "mitm_config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_file_unreadable(folder: Path) -> None:
    """A file that is not UTF-8, or cannot be opened, is rejected with the reason."""
    (folder / "mitm_config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"mitm_config.yaml cannot be read: it is not UTF-8"):
        gather()
    with pytest.raises(SettingsError, match="conf cannot be read: it is a directory"):
        sources._read(folder / "conf", {})


def test_file_named(folder: Path) -> None:
    """A file named by the option replaces the default one, a missing one is an error, and an empty name is ignored."""
    (folder / "mitm_config.yaml").write_text("azure_openai_proxy_mode: azure")
    (folder / "other.yaml").write_text("azure_openai_proxy_mode: openai")
    assert "openai" == settings(AZURE_OPENAI_CONFIG="other.yaml").mode
    assert "azure" == settings("--set", "azure_openai_config=", AZURE_OPENAI_CONFIG="other.yaml").mode
    (folder / "other.yaml").write_text("# nothing")
    assert {} == gather(environ={"AZURE_OPENAI_CONFIG": "other.yaml"})[1].values
    with pytest.raises(
        SettingsError, match=r"azure_openai_config \(environment variable AZURE_OPENAI_CONFIG\): there is no file gone.yaml"
    ):
        settings(AZURE_OPENAI_CONFIG="gone.yaml")


@pytest.mark.parametrize(
    "name, hint",
    [
        ("azure_openai_endpiont", "azure_openai_endpiont is not an option: did you mean azure_openai_endpoint?"),
        ("AZURE_OPENAI_TOKEN", "did you mean azure_openai_token?"),
        ("listen-port", "did you mean listen_port?"),
        ("zzzzzz", "zzzzzz is not an option"),
        (KEY, "one of its names is not an option"),
    ],
)
def test_unknown_name(name: str, hint: str) -> None:
    """An unknown name is rejected with the most similar option, and a name that may be a key is not quoted."""
    with pytest.raises(SettingsError) as caught:
        sources.check_names(ConfigFile(Path("f.yaml"), {name: 1}), Options().keys())
    assert str(caught.value).startswith("f.yaml: ")
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("azure_openai_tokn", "azure_openai_tokn is not an option: did you mean azure_openai_token?"),
        ("azure-openai-token", "did you mean azure_openai_token?"),
        ("AZURE_OPENAI_TOKEN", "did you mean azure_openai_token?"),
        ("azur_openai_endpoint", "did you mean azure_openai_endpoint?"),
        ("azure_openai_backends", "can be set in mitm_config.yaml only"),
        (f"azure_openai_token:{KEY}", "one of its names is not an option: did you mean azure_openai_token?"),
        ("azure_openai_zzzzzzzzzzzzzzzzzzzzzzzzzz", "is not an option"),
    ],
)
def test_unknown_name_of_set(name: str, hint: str, folder: Path) -> None:
    """A misspelled option, which mitmproxy would ignore, is rejected on the command line and in mitmproxy's own file."""
    for where in ("--set", "conf/config.yaml"):
        (folder / "conf" / "config.yaml").write_text("" if where == "--set" else f"{json.dumps(name)}: x")
        with pytest.raises(SettingsError) as caught:
            gather(*(["--set", f"{name}=x"] if where == "--set" else []))
        assert where in str(caught.value)
        assert str(caught.value).endswith(hint)
        assert KEY not in str(caught.value)


def test_names_of_other_scripts_are_left_alone() -> None:
    """Options of other scripts are accepted, because they may be declared later."""
    assert "azure" == settings("--set", "my_script_mode=x", "--set", "modify_headers=a").mode


def test_known_names() -> None:
    """One file may contain the addon's options, mitmproxy's, and those of its three tools."""
    sources.check_names(
        ConfigFile(Path("f"), dict.fromkeys(["azure_openai_token", "listen_port", "web_port", "flow_detail"])), Options().keys()
    )


TOOLS_OPTIONS = """
import asyncio
from mitmproxy.options import Options
from mitmproxy.tools.console.master import ConsoleMaster
from mitmproxy.tools.dump import DumpMaster
from mitmproxy.tools.web.master import WebMaster

async def main():
    held = [tool(Options()).options.keys() for tool in (DumpMaster, WebMaster, ConsoleMaster)]
    print(*set.union(*held) - set.intersection(*held))

asyncio.run(main())
"""


@pytest.mark.slow
def test_names_of_the_tools() -> None:
    """The list of options of single tools equals the options that the three tools do not share, in each supported version."""
    # in a separate process, because modules of mitmproxy's console raise warnings on access
    done = subprocess.run([sys.executable, "-c", TOOLS_OPTIONS], capture_output=True, text=True, check=True, timeout=60)
    assert set() == set(done.stdout.split()) - sources.TOOLS


@pytest.mark.parametrize(
    "arguments, names, listens",
    [
        ([], set(), False),
        (["-p", "1"], {"listen_port"}, True),
        (["--listen-host=x"], {"listen_host"}, True),
        (["--set", "listen_port=1"], {"listen_port"}, True),
        (["-m", "socks5"], {"mode"}, False),
        (["-m", "socks5@1"], {"mode"}, True),
        (["--set", "mode=socks5@1"], {"mode"}, True),
        (["-s", "x.py", "-w", "out", "~u x"], set(), False),
        (["-q"], {"termlog_verbosity", "flow_detail"}, False),
        (["-v"], {"termlog_verbosity", "flow_detail"}, False),
        (["--no-http2", "--web-port", "1"], {"http2"}, False),
        (["-p", "no:cacheprovider"], set(), False),
    ],
)
def test_command_line(arguments: list[str], names: set[str], listens: bool) -> None:
    """mitmproxy's own flags are parsed as mitmproxy does, and other command lines yield nothing."""
    given = sources.command_line(arguments, Options())
    assert names == given.names
    assert listens == given.listens
