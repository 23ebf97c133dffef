"""The image, built and run: the Containerfile is the one that users build, on a base made of Debian's own packages.

Slow, so it is asked for: `make image-test`. Needs root, debootstrap, buildah, podman and runc.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from azure_simulator import Gate
from support.processes import PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator

TOOLS = ("debootstrap", "buildah", "podman", "runc", "tar")
BASE = "localhost/debian-python"
IMAGE = "localhost/azure-openai-proxy"
STATE = "/var/lib/azure-openai-proxy"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
# pip takes the wheels of the image's machine, not of this one
PLATFORMS = ("manylinux_2_36_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64")


def why_not() -> str | None:
    if not os.environ.get("AZURE_OPENAI_PROXY_IMAGE_TEST"):
        return "`make image-test` asks for it: it takes a minute or two"
    if os.geteuid() != 0:
        return "needs root, to make a base and to run a container"
    return next((f"{tool} is not installed" for tool in TOOLS if not shutil.which(tool)), None)


pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(600),  # seconds: Debian's packages for the base come from a mirror, and a first test waits for all of it
]


def run(*command: str, input: bytes | None = None) -> str:
    done = subprocess.run(command, input=input, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr.decode()[-2000:]}"
    return done.stdout.decode()


class Containers:
    """podman with a storage of its own; a runtime and options that need neither systemd nor a user's session."""

    def __init__(self, folder: Path) -> None:
        self._storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"))
        self.folder = folder

    def podman(self, *arguments: str) -> str:
        return run("podman", *self._storage, "--runtime", "runc", "--cgroup-manager", "cgroupfs", *arguments)

    def build(self) -> None:
        root, wheels = self.folder / "base", self.folder / "wheels"
        run(
            "debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "trixie", str(root)
        )  # from its own mirror
        run("sh", "-c", f"tar -C '{root}' -c . | podman {' '.join(self._storage)} import - {BASE}")
        shutil.rmtree(root)
        tags = [part for platform in PLATFORMS for part in ("--platform", platform)]
        target = ("--python-version", "3.13", "--implementation", "cp", *("--abi", "cp313", "--abi", "abi3", "--abi", "none"), *tags)
        lock = str(ROOT / "requirements.lock")
        pip = shutil.which("pip3") or "pip"
        run(pip, "download", "-q", "--only-binary", ":all:", *target, "--require-hashes", "-r", lock, "-d", str(wheels))
        options = ("--isolation", "chroot", "--format", "docker", "--build-context", f"wheels={wheels}")
        arguments = ("--build-arg", f"BASE={BASE}", "--build-arg", "PIP_NO_INDEX=1")
        run("buildah", *self._storage, "build", *options, *arguments, "-f", str(ROOT / "deploy/Containerfile"), "-t", IMAGE, str(ROOT))

    @contextmanager
    def running(self, port: int, *mounts: str, **env: str) -> Iterator[str]:
        """A container as the documentation runs it: its name."""
        variables = [part for name, value in env.items() for part in ("-e", f"{name}={value}")]
        hardened = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges")
        limits = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096")
        name = f"proxy-{port}"
        address = f"AZURE_OPENAI_PROXY_ADDRESS=127.0.0.1:{port}"
        volume = ("-v", f"azure-openai-proxy-ca:{STATE}", *(part for mount in mounts for part in ("-v", mount)))
        self.podman("run", "-d", "--name", name, "--network", "host", *hardened, *volume, *limits, "-e", address, *variables, IMAGE)
        try:
            follow = subprocess.Popen(
                ["podman", *self._storage, "--runtime", "runc", "--cgroup-manager", "cgroupfs", "logs", "-f", name],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert follow.stdout
            assert any("API version" in line for line in follow.stdout)
            follow.kill()
            follow.wait()
            follow.stdout.close()
            yield name
        finally:
            self.podman("rm", "-f", "-v", name)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    containers = Containers(tmp_path_factory.mktemp("containers"))
    containers.build()
    yield containers
    containers.podman("rmi", "-a", "-f")
    # mounts of overlay would keep pytest from clearing up
    subprocess.run(["umount", str(containers.folder / "storage" / "overlay")], check=False, capture_output=True)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free: int = probe.getsockname()[1]
        return free


def test_a_mounted_configuration_is_read(containers: Containers, port: int, azure: Simulator, tmp_path: Path) -> None:
    """A file that belongs to root, named by the variable, is in force."""
    file = tmp_path / "mitm_config.yaml"
    file.write_text(f"azure_openai_endpoint: {azure.http_url}\nazure_openai_model_mapper: mine=gpt-4o\n")
    mount = f"{file}:/etc/mitm_config.yaml:ro"
    with containers.running(port, mount, AZURE_OPENAI_CONFIG="/etc/mitm_config.yaml", AZURE_OPENAI_TOKEN=azure.key):
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT | {"model": "mine"}, timeout=PATIENCE, trust_env=False
        )
        assert (200, "You said: hello") == (answer.status_code, answer.json()["choices"][0]["message"]["content"])


def test_the_original_s_variables_are_enough(containers: Containers, port: int, azure: Simulator) -> None:
    """Nothing but them: the key, the version and the mapping are in force."""
    variables = {
        "AZURE_OPENAI_ENDPOINT": azure.http_url,
        "AZURE_OPENAI_TOKEN": azure.key,
        "AZURE_OPENAI_APIVERSION": "2024-06-01",
        "AZURE_OPENAI_MODEL_MAPPER": "mine=gpt-4o",
        "AZURE_OPENAI_PROXY_MODE": "azure",
    }
    with containers.running(port, **variables) as name:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT | {"model": "mine"}, timeout=PATIENCE, trust_env=False
        )
        assert (200, "You said: hello") == (answer.status_code, answer.json()["choices"][0]["message"]["content"])
        assert "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01" == azure.requests[-1].path

        assert "uid=10001" in containers.podman("exec", name, "id")
        assert "no" == containers.podman("exec", name, "sh", "-c", "touch /opt/x 2>/dev/null && echo yes || echo no").strip()
        tools = "for tool in gcc cc make pip git; do [ -x /opt/azure-openai-proxy/bin/$tool ] && echo $tool; command -v $tool; done; true"
        assert "" == containers.podman("exec", name, "sh", "-c", tools)
        containers.podman("healthcheck", "run", name)
        assert azure.key not in containers.podman("logs", name)


def test_a_stream_outlives_the_stop(containers: Containers, port: int, azure: Simulator) -> None:
    """`podman stop` in the middle of a stream: it comes to its end, and the container to exit code 0."""
    gate = Gate(before=3)
    azure.faults.next(gate)
    with (
        containers.running(port, AZURE_OPENAI_ENDPOINT=azure.http_url, AZURE_OPENAI_TOKEN=azure.key) as name,
        httpx.Client(timeout=PATIENCE, trust_env=False) as client,
        client.stream("POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT | {"stream": True}) as response,
    ):
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        assert "assistant" == json.loads(next(events))["choices"][0]["delta"]["role"]
        assert gate.reached.wait(PATIENCE)
        containers.podman("kill", "--signal", "TERM", name)
        gate.release()
        assert "[DONE]" == list(events)[-1]
        assert "0" == containers.podman("wait", name).strip()


def test_clients_go_on_trusting_it(containers: Containers, port: int, azure: Simulator) -> None:
    """The CA is in the volume: another container has the same."""
    found = []
    for _ in range(2):
        with containers.running(port, AZURE_OPENAI_ENDPOINT=azure.http_url) as name:
            found.append(containers.podman("exec", name, "cat", f"{STATE}/mitmproxy-ca-cert.pem"))
    assert "BEGIN CERTIFICATE" in found[0]
    assert found[0] == found[1]


def test_it_says_what_is_missing(containers: Containers, port: int) -> None:
    """Without an endpoint it ends, with one line."""
    with pytest.raises(AssertionError, match="azure_openai_endpoint is not set"):
        containers.podman("run", "--rm", "--network", "none", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096", IMAGE)
