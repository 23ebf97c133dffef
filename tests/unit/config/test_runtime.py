"""The settings of a running mitmproxy: start, changes, and mitmproxy's own options in the file."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from mitmproxy import exceptions

from azure_openai_proxy.config import options, prices, runtime
from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.config.runtime import Runtime
from azure_openai_proxy.config.sources import Given
from azure_openai_proxy.errors import SettingsError
from support.configuration import ENDPOINT, KEY, Mitmproxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mitmproxy.optmanager import OptManager

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from mitmproxy.test import taddons

pytestmark = pytest.mark.usefixtures("folder")


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


def test_a_ledger_with_a_password_is_masked(mitmproxy: Mitmproxy) -> None:
    """The URL of a ledger is shown if it has no password, and applies again after other changes if it is masked."""
    url = f"postgresql+psycopg://proxy:{KEY}@db/usage"
    live = mitmproxy.start(AZURE_OPENAI_LEDGER=url)
    mitmproxy.options.update(azure_openai_max_body="1k")
    assert (url, "(hidden)") == (live.settings.ledger, mitmproxy.options.azure_openai_ledger)
    mitmproxy.options.update(azure_openai_ledger="sqlite:///usage.db")
    assert ["sqlite:///usage.db"] * 2 == [live.settings.ledger, mitmproxy.options.azure_openai_ledger]


def test_a_shared_state_with_a_password_is_masked(mitmproxy: Mitmproxy) -> None:
    """The URL of the shared state is shown if it has no password."""
    url = f"redis://:{KEY}@cache:6379/1"
    live = mitmproxy.start(AZURE_OPENAI_SHARED_STATE=url)
    assert (url, "(hidden)") == (live.settings.shared_state, mitmproxy.options.azure_openai_shared_state)
    mitmproxy.options.update(azure_openai_shared_state="redis://cache")
    assert ["redis://cache"] * 2 == [live.settings.shared_state, mitmproxy.options.azure_openai_shared_state]
    assert KEY not in repr(live.settings)


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


def test_where_the_value_of_an_error_is(mitmproxy: Mitmproxy, folder: Path) -> None:
    """An error of a later check has the source of the setting that it names; the text of another one is unchanged."""
    (folder / "mitm_config.yaml").write_text("azure_openai_access_log: a/b")
    live = mitmproxy.start()
    for text, located in [
        ("azure_openai_access_log: cannot write a/b: why", "azure_openai_access_log (mitm_config.yaml): cannot write a/b: why"),
        ("azure_openai_otlp: why", "azure_openai_otlp: why"),
    ]:
        assert located == live.located(SettingsError(text))


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
        ("azure_openai_backens: []", "mitm_config.yaml: azure_openai_backens is not an option: did you mean azure_openai_backends?"),
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
    assert "confdir (mitm_config.yaml): the config.yaml in this folder is not read" in caplog.text


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


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_the_address_of_the_launcher_moves(host: str, mitmproxy: Mitmproxy, folder: Path) -> None:
    """The launcher passes the configured address to mitmproxy, not to the addon. A change of the file moves the server."""
    file = folder / "mitm_config.yaml"
    file.write_text(f"azure_openai_proxy_address: '{host}:1'")
    mitmproxy.options.update(listen_host=host, listen_port=1)
    live = mitmproxy.start()
    live.running(mitmproxy.options)
    assert ["regular"] == mitmproxy.options.mode
    moved = []
    for text in ("", "azure_openai_proxy_address: 4", "azure_openai_proxy_address: '[::1]:4'", ""):
        file.write_text(text)
        live.reread(mitmproxy.options)
        moved.append((*mitmproxy.options.mode, mitmproxy.options.listen_host, mitmproxy.options.listen_port))
    assert [("regular@8080", "", None), ("regular@4", "", None), ("regular@::1:4", "", None), ("regular", "", None)] == moved


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("listen_port: 5", "regular@5"),
        ("listen_host: 127.0.0.2", "regular@127.0.0.2:8080"),
        ("azure_openai_proxy_address: 4\nlisten_host: 127.0.0.2", "regular@4"),
    ],
)
def test_the_address_of_the_launcher_is_replaced_by_mitmproxy_s(text: str, mode: str, mitmproxy: Mitmproxy, folder: Path) -> None:
    """A file that has mitmproxy's own options instead moves the server too."""
    file = folder / "mitm_config.yaml"
    file.write_text("azure_openai_proxy_address: 127.0.0.1:1")
    mitmproxy.options.update(listen_host="127.0.0.1", listen_port=1)
    live = mitmproxy.start()
    live.running(mitmproxy.options)
    file.write_text(text)
    live.reread(mitmproxy.options)
    assert [mode] == mitmproxy.options.mode
    assert 1 != mitmproxy.options.listen_port


def test_the_address_of_the_launcher_is_replaced(mitmproxy: Mitmproxy, folder: Path) -> None:
    """Its host is not used for an address without one."""
    file = folder / "mitm_config.yaml"
    file.write_text("azure_openai_proxy_address: 127.0.0.1:1")
    mitmproxy.options.update(listen_host="127.0.0.1", listen_port=1)
    live = mitmproxy.start()
    live.running(mitmproxy.options)
    file.write_text("azure_openai_proxy_address: 4")
    live.reread(mitmproxy.options)
    assert (["regular@4"], "") == (mitmproxy.options.mode, mitmproxy.options.listen_host)


def test_the_launcher_has_passed_the_files_options(mitmproxy: Mitmproxy, folder: Path) -> None:
    """A server that already listens as the file says is not restarted."""
    (folder / "mitm_config.yaml").write_text("listen_port: 3\nmode: [socks5]")
    mitmproxy.options.update(listen_port=3, mode=["socks5"])
    live = mitmproxy.start()
    live.running(mitmproxy.options)
    assert ["socks5"] == mitmproxy.options.mode


def test_given_by_default() -> None:
    """By default the process's own environment and arguments are read."""
    assert Given() == Runtime()._given


@contextmanager
def configured(live: Runtime) -> Iterator[OptManager]:
    """mitmproxy's options, from which the settings were read."""
    with taddons.context() as context:
        live.load(SimpleNamespace(master=context.master, add_option=context.options.add_option))  # type: ignore[arg-type]
        context.options.update(confdir="conf")
        live.configure(context.options, options.NAMES)
        yield context.options


async def test_the_file_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    """A change of the file is applied, an invalid change is logged once and ignored, and an equal one has no effect."""
    caplog.set_level(logging.INFO)
    file, key = Path("mitm_config.yaml"), Path("key")
    key.write_text("first")
    file.write_text(f"azure_openai_backends: [{{name: a, endpoint: https://a.example, token_file: {key}}}]")
    live = Runtime({}, [])
    with configured(live) as mitmproxys:
        watching = asyncio.create_task(live.watch(mitmproxys, every=0))

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
        await until(lambda: bool(live._file.path))
        assert ("second", "") == (live.settings.token, caplog.text)
        watching.cancel()


async def test_a_file_that_changes_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second change is applied too."""
    file, done = Path("mitm_config.yaml"), asyncio.Event()
    file.write_text(f"azure_openai_endpoint: {ENDPOINT}")
    live = Runtime({}, [])
    with configured(live) as mitmproxys:
        reread = live.reread

        def read(changed: OptManager) -> None:
            reread(changed)
            if live.settings.max_attempts == 8:
                done.set()
            else:
                file.write_text(f"azure_openai_endpoint: {ENDPOINT}\nazure_openai_max_attempts: 8")

        monkeypatch.setattr(live, "reread", read)
        watching = asyncio.create_task(live.watch(mitmproxys, every=0))
        await asyncio.sleep(0)
        file.write_text(f"azure_openai_endpoint: {ENDPOINT}\nazure_openai_max_attempts: 7")
        async with asyncio.timeout(10):
            await done.wait()
        watching.cancel()
    assert 8 == live.settings.max_attempts


async def test_the_price_file_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    """A change of the price file is applied, and an invalid one is reported with model and key and leaves the prices in force."""
    caplog.set_level(logging.INFO)
    path = Path("prices.yaml")
    path.write_text("models: {a: {input: 1}}")
    live = Runtime({"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_PRICES": "prices.yaml"}, [])
    with configured(live) as mitmproxys:
        watching = asyncio.create_task(live.watch(mitmproxys, every=0))

        def price() -> float | None:
            return live.settings.prices.models["a"].level.rates.input if live.settings.prices else None

        async def until(done: Callable[[], bool]) -> None:
            async with asyncio.timeout(30):
                while not done():
                    await asyncio.sleep(0.001)

        assert 1 == price()
        await asyncio.sleep(0.01)
        path.write_text("models: {a: {input: 20, tiers: {prioritty: {input: 40}}}}")
        await until(lambda: price() == 20)
        assert 1 == caplog.text.count("'prioritty' is not a known tier: did you mean priority?")
        path.write_text("models: {a: {input: none}}")
        await until(lambda: "prices.yaml: a: input: write USD per million tokens" in caplog.text)
        assert 20 == price()
        assert "previous settings stay in force" in caplog.text
        watching.cancel()


async def test_a_changed_price_file_is_parsed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop does not wait for the parser, which takes a second for a long file."""
    path = Path("prices.yaml")
    path.write_text("models: {a: {input: 1}}")
    live = Runtime({"AZURE_OPENAI_ENDPOINT": ENDPOINT, "AZURE_OPENAI_PRICES": "prices.yaml"}, [])
    with configured(live) as mitmproxys:
        parse, threads, applied = prices._parsed, [], asyncio.Event()
        reread = live.reread

        def parsed(content: bytes) -> Mapping[str, prices.ModelPrice]:
            threads.append(threading.current_thread())
            return parse(content)

        def read(changed: OptManager) -> None:
            reread(changed)
            applied.set()

        monkeypatch.setattr(prices, "_parsed", parsed)
        monkeypatch.setattr(live, "reread", read)
        watching = asyncio.create_task(live.watch(mitmproxys, every=0))
        await asyncio.sleep(0)
        path.write_text("models: {a: {input: 20}, another: {input: 3}}")
        async with asyncio.timeout(30):
            await applied.wait()
        watching.cancel()
    assert live.settings.prices
    assert 20 == live.settings.prices.models["a"].level.rates.input
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("option, value", [("server_replay", ["a.flows"]), ("rfile", "a.flows"), ("rfile", None)])
def test_a_file_needs_no_endpoint(mitmproxy: Mitmproxy, caplog: pytest.LogCaptureFixture, option: str, value: object) -> None:
    """A file is replayed or shown without a configured endpoint."""
    mitmproxy.options.add_option(option, Sequence[str] if isinstance(value, list) else str | None, value, "")
    live = mitmproxy.start(AZURE_OPENAI_ENDPOINT="")
    assert () == live.settings.backends
    assert (value is None) == ("azure_openai_endpoint is not set" in caplog.text)
