"""The options: precedence, validation, error messages, and the values that mitmproxy shows."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import pytest
from mitmproxy import exceptions
from mitmproxy.options import Options
from ruamel.yaml import YAML

from azure_openai_proxy.api.backend import Base
from azure_openai_proxy.api.endpoints import RETIRED
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config import options, runtime, sources
from azure_openai_proxy.config import settings as values
from azure_openai_proxy.config.options import OPTIONS
from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.config.runtime import Runtime
from azure_openai_proxy.config.settings import Found, Settings
from azure_openai_proxy.config.sources import ConfigFile, Given
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from mitmproxy.addons.proxyauth import ProxyAuth
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.addons.script import ScriptLoader
    from mitmproxy.test import taddons

ROOT = Path(__file__).parents[3]
ENDPOINT = "https://r.openai.azure.com"
KEY = "sesame-0123456789"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a directory for mitmproxy's configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    return tmp_path


def gather(
    *arguments: str, environ: Mapping[str, str] | None = None, changed: Mapping[str, Found] | None = None
) -> tuple[dict[str, Found], ConfigFile]:
    return sources.gather(sources.command_line(arguments, Options()), environ or {}, "conf", changed=changed)


def settings(*arguments: str, **environ: str) -> Settings:
    return values.resolve(gather(*arguments, environ={"AZURE_OPENAI_ENDPOINT": ENDPOINT, **environ})[0])


# Precedence

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


def test_apiversion(folder: Path) -> None:
    """The api-version is the configured one, else the one in the endpoint's URL, else the newest dated stable one."""
    pasted = {"AZURE_OPENAI_ENDPOINT": f"{ENDPOINT}/openai/deployments/d/chat/completions?api-version=2024-06-01"}
    cases = [({}, "2024-10-21"), (pasted, "2024-06-01"), ({**pasted, "OPENAI_API_VERSION": "preview"}, "preview")]
    for environ, version in cases:
        assert version == getattr(settings(**environ).backend, "apiversion", None)
    (folder / "mitm_config.yaml").write_text("azure_openai_apiversion: 2024-02-01  # a date, for YAML")
    assert "2024-02-01" == getattr(settings(**pasted).backend, "apiversion", None)


def test_defaults() -> None:
    """With only an endpoint set, every setting has the default of the table."""
    chosen = settings()
    assert Settings() == dataclasses.replace(values.resolve({"azure_openai_proxy_mode": Found("openai", "")}), mode="azure")
    assert (Base("https", "r.openai.azure.com", 443), "") == (getattr(chosen.backend, "base", None), chosen.token)
    assert ("azure", None, frozenset({"api.openai.com"}), True, 256 * 1024 * 1024) == (
        chosen.mode,
        chosen.address,
        chosen.hosts,
        chosen.normalize,
        chosen.max_body,
    )
    assert Base("https", "api.openai.com", 443) == chosen.passthrough_endpoint


@pytest.mark.parametrize(
    "name, text, field, value",
    [
        ("azure_openai_proxy_mode", "OpenAI", "mode", "openai"),
        ("azure_openai_proxy_mode", "AZURE", "mode", "azure"),
        ("azure_openai_proxy_address", "127.0.0.1:8080", "address", Address("127.0.0.1", 8080)),
        ("azure_openai_proxy_address", ":8080", "address", Address("", 8080)),
        ("azure_openai_proxy_address", "0", "address", Address("", 0)),
        ("azure_openai_proxy_address", "[::1]:65535", "address", Address("::1", 65535)),
        ("azure_openai_hosts", "API.example.com, b.example,", "hosts", frozenset({"api.openai.com", "api.example.com", "b.example"})),
        ("azure_openai_normalize", "0", "normalize", False),
        ("azure_openai_normalize", "Yes", "normalize", True),
        ("azure_openai_max_body", "1000", "max_body", 1000),
        ("azure_openai_max_body", "256MB", "max_body", 256 << 20),
        ("azure_openai_max_body", "3 KiB", "max_body", 3 << 10),
        ("azure_openai_max_body", "1g", "max_body", 1 << 30),
        ("azure_openai_map_batch_files", "true", "map_batch_files", True),
        ("azure_openai_discover_models", "true", "discover_models", True),
        ("azure_openai_moderations_unflagged", "true", "moderations_unflagged", True),
        ("azure_openai_replace_apiversions", "Retired,2024-02-01", "replace_apiversions", RETIRED | {"2024-02-01"}),
        ("azure_openai_replace_apiversions", "2024-02-15-PREVIEW", "replace_apiversions", frozenset({"2024-02-15-preview"})),
        ("azure_openai_allowed_destinations", "OFF", "allowed_destinations", "off"),
        ("azure_openai_shutdown_timeout", "5", "shutdown_timeout", 5.0),
        ("azure_openai_shutdown_timeout", "0.5s", "shutdown_timeout", 0.5),
        ("azure_openai_passthrough_endpoint", "http://127.0.0.1:9/v1/", "passthrough_endpoint", Base("http", "127.0.0.1", 9)),
    ],
)
def test_values(name: str, text: str, field: str, value: object) -> None:
    """Each option accepts the values that its help text names."""
    assert value == getattr(settings("--set", f"{name}={text}"), field)
    assert value == getattr(settings(**{name.upper(): text}), field)


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("azure_openai_normalize: false", "normalize", False),
        ("azure_openai_proxy_address: 8123", "address", Address("", 8123)),
        ("azure_openai_max_body: 5", "max_body", 5),
        ("azure_openai_hosts: [a.example, 'b.example,c.example']", "hosts", {"api.openai.com", "a.example", "b.example", "c.example"}),
        ("azure_openai_hosts: a.example", "hosts", {"api.openai.com", "a.example"}),
        ("azure_openai_model_mapper: {gpt-4o: mine, 'o*': other}", "mapper", Mapper.parse("gpt-4o=mine,o*=other")),
        ("azure_openai_model_mapper: gpt-4o=mine", "mapper", Mapper.parse("gpt-4o=mine")),
        ("azure_openai_model_mapper: [gpt-4o=mine, o1=other]", "mapper", Mapper.parse("gpt-4o=mine,o1=other")),
    ],
)
def test_values_of_yaml(file: str, field: str, value: object, folder: Path) -> None:
    """YAML's own types, such as dates, numbers and lists, are accepted where they suit the option."""
    (folder / "mitm_config.yaml").write_text(file)
    assert value == getattr(settings(), field)


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


# Invalid values


@pytest.mark.parametrize(
    "name, text, right",
    [
        ("azure_openai_endpoint", "ftp://x.example", "https://RESOURCE.openai.azure.com"),
        ("azure_openai_token", "two words", "in one line"),
        ("azure_openai_token", "clé", "in one line"),
        ("azure_openai_token", f'"{KEY}"', "write it without quotes"),
        ("azure_openai_apiversion", "latest", "YYYY-MM-DD"),
        ("azure_openai_model_mapper", "gpt-4o", "model=deployment"),
        ("azure_openai_proxy_mode", "both", "azure or openai"),
        ("azure_openai_proxy_address", "127.0.0.1", "HOST:PORT"),
        ("azure_openai_proxy_address", "::1:8080", "HOST:PORT"),
        ("azure_openai_proxy_address", ":65536", "HOST:PORT"),
        ("azure_openai_proxy_address", "a b:1", "host name"),
        ("azure_openai_hosts", "https://x.example", "without https://"),
        ("azure_openai_allowed_origins", "chat.example.com", "scheme://host"),
        ("azure_openai_allowed_origins", "*,https://chat.example.com", "a * alone"),
        ("azure_openai_normalize", "maybe", "true or false"),
        ("azure_openai_max_body", "0", "256m"),
        ("azure_openai_max_body", "lots", "256m"),
        ("azure_openai_allowed_destinations", "all", "any, local, public or off"),
        ("azure_openai_shutdown_timeout", "soon", "as in 30"),
        ("azure_openai_pool_size", "-1", "from 0 to 99999"),
        ("azure_openai_passthrough_endpoint", "https://u:p@x.example", "a user name or password"),
    ],
)
def test_refused(name: str, text: str, right: str, folder: Path) -> None:
    """An invalid value is reported in one line with the setting, its source and the valid values, for every source."""
    where: dict[str, Callable[[], Settings]] = {
        "--set": lambda: settings("--set", f"{name}={text}"),
        f"environment variable {name.upper()}": lambda: settings(**{name.upper(): text}),
        "mitm_config.yaml": lambda: values.resolve(gather()[0]),
    }
    for place, read in where.items():
        if place == "mitm_config.yaml":
            (folder / place).write_text(json.dumps({"azure_openai_endpoint": ENDPOINT, name: text}))  # JSON is YAML
        with pytest.raises(SettingsError) as caught:
            read()
        assert str(caught.value).startswith(f"{name} ({place}): ")
        assert right in str(caught.value)
        assert "\n" not in str(caught.value)
        assert KEY not in str(caught.value)


def test_no_endpoint() -> None:
    """Without an endpoint the error names all three ways to set it, and openai mode needs none."""
    with pytest.raises(SettingsError, match=r"AZURE_OPENAI_ENDPOINT=https://RESOURCE\.openai\.azure\.com, --set .* mitm_config\.yaml"):
        values.resolve({})
    assert values.resolve({"azure_openai_proxy_mode": Found("openai", "--set")}).backend is None


def test_key_in_the_wrong_place() -> None:
    """A key that was also pasted into another setting is masked in that setting's error."""
    with pytest.raises(SettingsError) as caught:
        settings(AZURE_OPENAI_TOKEN=KEY, AZURE_OPENAI_MODEL_MAPPER=KEY)
    assert KEY not in str(caught.value)
    assert "(hidden)" in str(caught.value)


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


def test_file_of_wrong_types(folder: Path) -> None:
    """A list or a mapping in the place of a string is rejected."""
    for text in ("azure_openai_proxy_mode: {a: b}", "azure_openai_hosts: [1]", "azure_openai_token: true"):
        (folder / "mitm_config.yaml").write_text(f"azure_openai_endpoint: {ENDPOINT}\n{text}")
        with pytest.raises(SettingsError, match=r"\(mitm_config.yaml\): write text"):
            values.resolve(gather()[0])


def test_file_unreadable(folder: Path) -> None:
    """A file that is not UTF-8, or cannot be opened, is rejected with the reason."""
    (folder / "mitm_config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"mitm_config.yaml cannot be read: it is not UTF-8"):
        gather()
    with pytest.raises(SettingsError, match="conf cannot be read: Is a directory"):
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


def test_an_untrusted_file(mitmproxy: Mitmproxy, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An untrusted file ends the start, and while running the previous settings stay in force until it is corrected."""
    caplog.set_level(logging.INFO)
    file = folder / "mitm_config.yaml"
    file.write_text("azure_openai_max_body: 1k")
    live = mitmproxy.start()
    live.running(mitmproxy.options)
    assert f"Configuration file: {file}" in caplog.text
    caplog.clear()

    file.write_text("azure_openai_max_body: 2k")
    before = live._stamps()
    file.chmod(0o666)
    assert before != live._stamps()
    live.reread(mitmproxy.options)
    assert 1 << 10 == live.settings.max_body
    assert ["mitm_config.yaml is not used: all users may write it (chmod o-w): the previous settings stay in force"] == caplog.messages

    file.chmod(0o644)
    live.reread(mitmproxy.options)
    assert 2 << 10 == live.settings.max_body
    assert f"Configuration file: {file}" in caplog.text


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


def test_names_of_the_tools() -> None:
    """The list of options of single tools equals the options that the three tools do not share, in each supported version."""
    # in a separate process, because modules of mitmproxy's console raise warnings on access
    done = subprocess.run([sys.executable, "-c", TOOLS_OPTIONS], capture_output=True, text=True, check=True, timeout=60)
    assert set() == set(done.stdout.split()) - sources.TOOLS


# The command line


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


@pytest.mark.parametrize(
    "modes, address, result",
    [
        (["regular"], Address("127.0.0.1", 1), ["regular@127.0.0.1:1"]),
        (["regular"], Address("", 1), ["regular@1"]),
        (["regular"], Address("::1", 1), ["regular@::1:1"]),
        (["wireguard", "regular@9", "socks5", "regular"], Address("", 1), ["wireguard", "regular@9", "socks5@1", "regular"]),
        (["local", "dns"], Address("", 1), ["local", "dns"]),
        (["nonsense"], Address("", 1), ["nonsense"]),
    ],
)
def test_listen_modes(modes: list[str], address: Address, result: list[str]) -> None:
    """The first mode that OpenAI clients can use and that has no address gets the configured address."""
    assert result == runtime.listen_modes(modes, address)


@pytest.mark.parametrize("modes, result", [(["regular"], True), (["regular", "socks5"], False), (["wireguard"], False)])
def test_movable(modes: list[str], result: bool) -> None:
    """--listen-port is used only with a single mode that listens."""
    assert result == runtime.movable(modes)


# The option table and its documents


def test_table() -> None:
    """Every option has a type that all of mitmproxy supports, a default that parses, and help in full sentences."""
    for option in OPTIONS:
        assert option.type in (str, bool) or get_args(option.type) == (str,)
        option.parse(option.default)
        assert option.help.endswith(".")


def test_sample_file() -> None:
    """mitm_config.yaml contains every option, commented out, and is valid and effective once the # are removed."""
    text = (ROOT / "mitm_config.yaml").read_text()
    assert YAML(typ="safe").load(text) is None
    for option in OPTIONS:
        assert f"\n#{option.name}: " in text or f"\n#{option.name}:\n" in text or f"\n# {option.name} names" in text
    lines = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    Path("mitm_config.yaml").write_text("\n".join(lines))
    found, file = gather()
    sources.check_names(file, [*Options().keys(), "store_streamed_bodies"])
    assert "my-gpt-4o" == values.resolve(found).mapper.deployment("gpt-4o")
    for option in OPTIONS:
        if option.default and option.name != "azure_openai_config":
            assert option.default == values._typed(option, found), option.name


@pytest.mark.parametrize(
    "environ, line",
    [
        (
            {},
            (
                "azure mode: https://r.openai.azure.com, API version 2024-10-21, "
                "no mappings beside the default, the clients' own keys, mitmproxy's own address"
            ),
        ),
        (
            {"AZURE_OPENAI_TOKEN": KEY, "AZURE_OPENAI_MODEL_MAPPER": "a=b", "AZURE_OPENAI_PROXY_ADDRESS": "[::1]:80"},
            (
                "azure mode: https://r.openai.azure.com, API version 2024-10-21, "
                "1 mapping beside the default, key configured, pages of local origins may use the key, address [::1]:80"
            ),
        ),
        (
            {"AZURE_OPENAI_TOKEN": KEY, "AZURE_OPENAI_ALLOWED_ORIGINS": "*"},
            (
                "azure mode: https://r.openai.azure.com, API version 2024-10-21, "
                "no mappings beside the default, key configured, pages of any origin may use the key, mitmproxy's own address"
            ),
        ),
        (
            {"AZURE_OPENAI_PROXY_MODE": "openai", "AZURE_OPENAI_PROXY_ADDRESS": ":80"},
            "openai mode: all requests go to https://api.openai.com unchanged, address :80",
        ),
    ],
)
def test_summary(environ: dict[str, str], line: str) -> None:
    """The effective configuration is logged in one line without the key."""
    assert line == values.summary(settings(**environ))


def test_settings_hide_the_key() -> None:
    """The repr of the settings does not contain the key."""
    assert KEY not in repr(settings(AZURE_OPENAI_TOKEN=KEY))


# In mitmproxy


class Addon:
    """An addon that calls `Runtime` as the real one does."""

    def __init__(self, environ: Mapping[str, str], arguments: Sequence[str]) -> None:
        self.live = Runtime(environ, arguments)

    def load(self, loader: Any) -> None:
        self.live.load(loader)


class Mitmproxy:
    """mitmproxy's options and addons without its servers, with the addon loaded like a script."""

    def __init__(self, context: taddons.context) -> None:
        self.options = context.options
        self.master = context.master
        self.options.update(confdir="conf")
        self.master.addons.add(Proxyserver(), ProxyAuth(), ScriptLoader())

    def start(self, *arguments: str, **environ: str) -> Runtime:
        given = sources.command_line(arguments, self.options)
        self.options.set(*(f"{name}={value}" for name, values in given.sets.items() for value in values), defer=True)
        addon = Addon({"AZURE_OPENAI_ENDPOINT": ENDPOINT, **environ}, arguments)
        addon.configure = lambda updated: addon.live.configure(self.options, updated)  # type: ignore[attr-defined]
        self.master.addons.add(addon)
        addon.configure(self.options.keys())  # type: ignore[attr-defined]
        return addon.live


@pytest.fixture
def mitmproxy() -> Iterator[Mitmproxy]:
    with taddons.context(loadcore=False) as context:
        yield Mitmproxy(context)


def test_start_shows_effective_values(mitmproxy: Mitmproxy) -> None:
    """mitmweb's options show the effective values from every source, with the key masked."""
    pasted = f"{ENDPOINT}/openai/v1/?subscription-key={KEY}"
    live = mitmproxy.start(
        "--set", f"azure_openai_token={KEY}", AZURE_OPENAI_ENDPOINT=pasted, AZURE_OPENAI_HOSTS="a.example", AZURE_OPENAI_NORMALIZE="no"
    )
    held = {name: getattr(mitmproxy.options, name) for name in options.NAMES}
    assert KEY == live.settings.token
    assert KEY not in repr(held)
    assert (ENDPOINT, "v1", "(hidden)", ["a.example"], False) == tuple(
        held[f"azure_openai_{name}"] for name in ("endpoint", "apiversion", "token", "hosts", "normalize")
    )


def test_start_without_endpoint(mitmproxy: Mitmproxy) -> None:
    """openai mode starts without an endpoint and shows none."""
    live = mitmproxy.start(AZURE_OPENAI_ENDPOINT="", AZURE_OPENAI_PROXY_MODE="openai")
    assert ("openai", "") == (live.settings.mode, mitmproxy.options.azure_openai_endpoint)


def test_set_beats_mitmproxys_file(mitmproxy: Mitmproxy, folder: Path) -> None:
    """For the addon's options --set precedes config.yaml, unlike in mitmproxy, and the file's other values apply."""
    (folder / "conf" / "config.yaml").write_text("azure_openai_proxy_mode: azure\nazure_openai_max_body: 5")
    mitmproxy.options.update_defer(azure_openai_proxy_mode="azure", azure_openai_max_body=5)
    live = mitmproxy.start("--set", "azure_openai_proxy_mode=openai")
    assert ("openai", 5) == (live.settings.mode, live.settings.max_body)


def test_values_from_elsewhere(mitmproxy: Mitmproxy) -> None:
    """Values that an embedding program sets before the options exist are applied, even without a command line."""
    mitmproxy.options.update_defer(azure_openai_max_body=7)
    mitmproxy.options.set("azure_openai_proxy_mode=openai", defer=True)
    live = mitmproxy.start("-p", "nonsense")
    assert ("openai", 7) == (live.settings.mode, live.settings.max_body)


def test_careless_settings_are_named_at_the_start(mitmproxy: Mitmproxy, caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are logged once at startup and not again after a change."""
    live = mitmproxy.start("--set", f"azure_openai_token={KEY}", AZURE_OPENAI_ENDPOINT="http://10.0.0.7", AZURE_OPENAI_TOKN="x")
    live.running(mitmproxy.options)
    live.reread(mitmproxy.options)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["unencrypted", "command line", "AZURE_OPENAI_TOKN"] == [
        next(word for word in ("unencrypted", "command line", "AZURE_OPENAI_TOKN") if word in line) for line in warned
    ]
    assert KEY not in caplog.text


def test_a_slip_in_set_ends_the_start(mitmproxy: Mitmproxy, caplog: pytest.LogCaptureFixture) -> None:
    """A misspelled option of --set ends the start with one line."""
    mitmproxy.start("--set", "azure_openai_tokn=x")
    assert ["--set: azure_openai_tokn is not an option: did you mean azure_openai_token?"] == caplog.messages


def test_bad_start(mitmproxy: Mitmproxy, caplog: pytest.LogCaptureFixture) -> None:
    """An invalid value at startup is logged as one ERROR without a traceback, no settings apply, and `running` logs nothing more."""
    live = mitmproxy.start(AZURE_OPENAI_APIVERSION="latest")
    live.running(mitmproxy.options)
    (record,) = caplog.records
    assert (logging.ERROR, None) == (record.levelno, record.exc_info)
    assert record.getMessage().startswith("azure_openai_apiversion (environment variable AZURE_OPENAI_APIVERSION): ")
    assert live.settings.backend is None


def test_change_while_running(mitmproxy: Mitmproxy, caplog: pytest.LogCaptureFixture) -> None:
    """A change takes effect immediately, is logged, and remains when another option changes."""
    caplog.set_level(logging.INFO)
    live = mitmproxy.start(AZURE_OPENAI_TOKEN="first")
    live.running(mitmproxy.options)
    caplog.clear()
    mitmproxy.options.update(azure_openai_token=KEY)
    assert (KEY, "(hidden)") == (live.settings.token, mitmproxy.options.azure_openai_token)
    mitmproxy.options.update(azure_openai_max_body="1k", azure_openai_apiversion="v1")
    assert (KEY, 1024, "v1") == (live.settings.token, live.settings.max_body, getattr(live.settings.backend, "apiversion", None))
    mitmproxy.options.update(azure_openai_apiversion="", azure_openai_token="")
    assert ("", "", "2024-10-21") == (live.settings.token, mitmproxy.options.azure_openai_token, mitmproxy.options.azure_openai_apiversion)
    assert 3 == len(caplog.records)
    assert KEY not in caplog.text


def test_change_refused(mitmproxy: Mitmproxy) -> None:
    """An invalid change is rejected, and settings and options keep their previous values."""
    live = mitmproxy.start(AZURE_OPENAI_TOKEN=KEY)
    live.running(mitmproxy.options)
    before = live.settings
    for change in ({"azure_openai_apiversion": "latest"}, {"azure_openai_endpoint": ""}, {"azure_openai_token": "two words"}):
        with pytest.raises(exceptions.OptionsError, match=r"azure_openai_\w+ (\(set while running\): |is not set: )"):
            mitmproxy.options.update(**change)
        assert before == live.settings
        assert ("2024-10-21", ENDPOINT, "(hidden)") == (
            mitmproxy.options.azure_openai_apiversion,
            mitmproxy.options.azure_openai_endpoint,
            mitmproxy.options.azure_openai_token,
        )
    mitmproxy.options.update(azure_openai_max_body="1k")
    assert KEY == live.settings.token


def test_change_of_others(mitmproxy: Mitmproxy) -> None:
    """A change of mitmproxy's own options does not reread the settings."""
    live = mitmproxy.start()
    before = live.settings
    mitmproxy.options.update(showhost=True)
    assert before is live.settings


def test_reload(mitmproxy: Mitmproxy, folder: Path) -> None:
    """A reloaded script reads the file again and does not take the option values shown by its predecessor as changes."""
    (folder / "mitm_config.yaml").write_text("azure_openai_max_body: 1k\nazure_openai_token: key")
    first = mitmproxy.start()
    mitmproxy.master.addons.remove(mitmproxy.master.addons.get("addon"))
    (folder / "mitm_config.yaml").write_text("azure_openai_max_body: 2k\nazure_openai_token: key")
    again = mitmproxy.start()
    assert (1024, 2048, "key") == (first.settings.max_body, again.settings.max_body, again.settings.token)


# mitmproxy's own options in the file


def test_mitmproxys_options(mitmproxy: Mitmproxy, folder: Path) -> None:
    """mitmproxy's options in the file are applied once, except those on the command line, so that later changes remain."""
    (folder / "mitm_config.yaml").write_text("showhost: true\nhttp2: false\nweb_port: 1\nlisten_host: 127.0.0.1")
    mitmproxy.options.update(listen_host="::1")
    mitmproxy.start("--listen-host", "::1")
    assert (True, False, "::1") == (mitmproxy.options.showhost, mitmproxy.options.http2, mitmproxy.options.listen_host)
    mitmproxy.options.update(showhost=False)
    mitmproxy.options.update(azure_openai_max_body="1k")
    assert mitmproxy.options.showhost is False


@pytest.mark.parametrize(
    "text, line",
    [
        ("listen_port: many", "listen_port (mitm_config.yaml): write optional int, not str"),
        ("showhost: 1", "showhost (mitm_config.yaml): write true or false, not int"),
        ("listen_host: 1", "listen_host (mitm_config.yaml): write text, not int"),
        ("connection_strategy: hasty", "connection_strategy (mitm_config.yaml): write one of eager, lazy"),
        ("proxyauth: opensesame", "proxyauth (mitm_config.yaml): Invalid proxyauth specification."),
        ("mode: [nonsense]", "mode (mitm_config.yaml): Invalid proxy mode specification: nonsense (unknown mode)"),
        ("azure_openai_endpiont: x", "mitm_config.yaml: azure_openai_endpiont is not an option: did you mean azure_openai_endpoint?"),
    ],
)
def test_mitmproxys_options_refused(text: str, line: str, mitmproxy: Mitmproxy, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value that mitmproxy rejects is reported in one line with the file and the option."""
    (folder / "mitm_config.yaml").write_text(text)
    mitmproxy.start()
    assert [line] == [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_confdir_comes_late(mitmproxy: Mitmproxy, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A confdir in the file, which comes too late for its config.yaml, is reported."""
    (folder / "mitm_config.yaml").write_text("confdir: elsewhere")
    mitmproxy.start()
    assert "confdir (mitm_config.yaml): too late" in caplog.text


async def test_scripts_join_those_that_run(folder: Path) -> None:
    """Scripts in the file are added once, relative to the file, and running scripts stay loaded."""
    (folder / "a.py").write_text("")
    (folder / "b.py").write_text("")
    (folder / "mitm_config.yaml").write_text("scripts: [b.py]")
    with taddons.context(loadcore=False) as context:
        mitmproxy = Mitmproxy(context)
        running, added = str(folder / "a.py"), str(folder / "b.py")
        mitmproxy.options.update(scripts=[running])
        mitmproxy.start()
        assert [running, added] == mitmproxy.options.scripts
        mitmproxy.master.addons.remove(mitmproxy.master.addons.get("addon"))
        mitmproxy.start()
        assert [running, added] == mitmproxy.options.scripts
        mitmproxy.options.update(scripts=[])


# The listen address


@pytest.mark.parametrize(
    "arguments, environ, file, modes, address",
    [
        ([], {}, "", ["regular"], None),
        ([], {"AZURE_OPENAI_PROXY_ADDRESS": "127.0.0.1:1"}, "", ["regular@127.0.0.1:1"], Address("127.0.0.1", 1)),
        (["-p", "2"], {"AZURE_OPENAI_PROXY_ADDRESS": "127.0.0.1:1"}, "", ["regular"], None),
        (["-p", "1"], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "", ["regular"], Address("", 1)),
        ([], {"AZURE_OPENAI_PROXY_ADDRESS": ":1"}, "mode: [socks5]", ["socks5@1"], Address("", 1)),
        ([], {}, "listen_port: 3", ["regular@3"], None),
        ([], {}, "listen_host: 127.0.0.1", ["regular@127.0.0.1:8080"], None),
        ([], {}, "listen_port: 3\nmode: [wireguard, regular@4]", ["wireguard", "regular@4"], None),
        ([], {}, "mode: [socks5]", ["socks5"], None),
        (["-p", "2"], {}, "listen_port: 3", ["regular"], None),
    ],
)
def test_listening(
    arguments: list[str],
    environ: dict[str, str],
    file: str,
    modes: list[str],
    address: Address | None,
    mitmproxy: Mitmproxy,
    folder: Path,
) -> None:
    """The listen address is that of the command line, else the addon's option, else mitmproxy's options in the file."""
    (folder / "mitm_config.yaml").write_text(file)
    if arguments:
        mitmproxy.options.update(listen_port=int(arguments[1]))
    live = mitmproxy.start(*arguments, **environ)
    live.running(mitmproxy.options)
    assert (modes, address) == (mitmproxy.options.mode, live.settings.address)


def test_address_while_running(mitmproxy: Mitmproxy) -> None:
    """An address set while running moves the server, even one set on the command line, and removing it moves the server back."""
    live = mitmproxy.start("-p", "2", AZURE_OPENAI_PROXY_ADDRESS=":1")
    live.running(mitmproxy.options)
    for text, modes in [("127.0.0.1:3", ["regular@127.0.0.1:3"]), (":4", ["regular@4"]), ("", ["regular"])]:
        mitmproxy.options.update(azure_openai_proxy_address=text)
        assert modes == mitmproxy.options.mode
    mitmproxy.options.update(azure_openai_proxy_address=":5")
    mitmproxy.options.update(mode=["socks5"])
    mitmproxy.options.update(azure_openai_proxy_address=":6")
    assert ["socks5@6"] == mitmproxy.options.mode


def test_given_by_default() -> None:
    """By default the process's own environment and arguments are read."""
    assert Given() == Runtime()._given


# Several backends in the file


def backends(text: str, *arguments: str, **environ: str) -> Settings:
    Path("mitm_config.yaml").write_text("azure_openai_backends:\n" + text)
    return values.resolve(gather(*arguments, environ=environ)[0])


TWO = "- {name: a, endpoint: https://a.example, token: '${KEY}', models: {gpt-4o: mine}}\n- {name: b, endpoint: https://b.example}\n"


def test_several_backends() -> None:
    """The file's backends are used, with environment variables expanded, and general settings apply to backends without their own."""
    found = backends(TWO, KEY=KEY, AZURE_OPENAI_TOKEN="shared", OPENAI_API_VERSION="v1")
    assert [("a", KEY, "v1"), ("b", "shared", "v1")] == [(backend.name, backend.token, backend.apiversion) for backend in found.backends]
    assert (KEY, "shared") == found.tokens
    assert {("a.example", 443), ("b.example", 443)} == found.destinations
    assert ["gpt-4o"] == found.listed.names()
    line = values.summary(found)
    assert "azure mode: a https://a.example, b https://b.example, API version v1" in line
    assert KEY not in line


def test_backends_or_an_endpoint() -> None:
    """An endpoint beside a list of backends is rejected, and so is an invalid list."""
    with pytest.raises(SettingsError, match=r"azure_openai_backends .* is set too: write the endpoint as one of the backends"):
        backends(TWO, KEY=KEY, AZURE_OPENAI_ENDPOINT=ENDPOINT)
    with pytest.raises(SettingsError, match=r"azure_openai_backends \(mitm_config\.yaml\): a: endpoint"):
        backends("- name: a")


@pytest.mark.parametrize(
    "variable, value, right",
    [
        ("AZURE_OPENAI_MAX_ATTEMPTS", "0", "from 1 to 99"),
        ("AZURE_OPENAI_CONNECT_TIMEOUT", "0", "above 0"),
        ("AZURE_OPENAI_CHUNK_TIMEOUT", "soon", "a number of seconds"),
        ("AZURE_OPENAI_ENTRA", "magic", "managed_identity"),
    ],
)
def test_resending_refused(variable: str, value: str, right: str) -> None:
    """An invalid retry setting is rejected with the valid values."""
    with pytest.raises(SettingsError, match=right):
        settings(**{variable: value})


def test_resending() -> None:
    """The retry settings are parsed."""
    found = settings(AZURE_OPENAI_MAX_ATTEMPTS="2", AZURE_OPENAI_FIRST_BYTE_TIMEOUT="0.5", AZURE_OPENAI_ENTRA="cli", AZURE_OPENAI_TOKEN=KEY)
    assert (2, 0.5, 10) == (found.max_attempts, found.timeouts.first_byte, found.timeouts.connect)
    assert ("", "cli") == (found.token, found.backends[0].entra)
    assert "Entra ID (cli)" in values.summary(found)


async def test_the_file_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    """A change of the file is applied, an invalid change is logged once and ignored, and an equal one has no effect."""
    caplog.set_level(logging.INFO)
    file, key = Path("mitm_config.yaml"), Path("key")
    key.write_text("first")
    file.write_text(f"azure_openai_backends: [{{name: a, endpoint: https://a.example, token_file: {key}}}]")
    live = Runtime({}, [])
    with taddons.context() as context:
        live.load(SimpleNamespace(master=context.master, add_option=context.options.add_option))  # type: ignore[arg-type]
        context.options.update(confdir="conf")
        live.configure(context.options, options.NAMES)
        watching = asyncio.create_task(live.watch(context.options, every=0))

        async def until(done: Callable[[], bool]) -> None:
            async with asyncio.timeout(30):
                while not done():
                    await asyncio.sleep(0.001)

        assert "first" == live.settings.token
        await asyncio.sleep(0.01)
        key.write_text("second\n")
        await until(lambda: live.settings.token == "second")
        file.unlink()
        await until(lambda: "previous settings stay in force" in caplog.text)
        caplog.clear()
        file.write_text(f"azure_openai_backends: [{{name: a, endpoint: https://a.example, token_file: {key}}}]")
        await asyncio.sleep(0.05)
        assert ("second", "") == (live.settings.token, caplog.text)
        watching.cancel()


def test_offline_there_need_be_no_azure() -> None:
    """With --server-replay no endpoint is required, and the line at startup says so."""
    found, _ = gather()
    assert "azure mode, offline: only recorded responses are served" == values.summary(values.resolve(found, offline=True))


@pytest.mark.parametrize(("text", "expected"), [("auto", None), ("off", 0), ("0", 0), ("8m", 8 << 20)])
def test_how_much_is_kept(text: str, expected: int | None) -> None:
    """The size of the store is the configured one, zero, or the default for the tool."""
    kept = settings(AZURE_OPENAI_ENDPOINT="https://r.openai.azure.com", AZURE_OPENAI_KEEP_BODIES=text)
    assert expected == kept.keep_bodies
    for looked_at, suits in ((True, 64 << 20), (False, 0)):
        assert values.kept_bodies(kept, Options(), looked_at=looked_at) == (suits if expected is None else expected)
