"""Each name in the compose file, the Containerfile, the unit and the Kubernetes manifests exists where it leads to, in this repository.

No registry of images, no daemon and no cluster is needed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy.addons.block import Block
from mitmproxy.options import Options
from mitmproxy.test import taddons
from ruamel.yaml import YAML

from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.api import local_responses
from azure_openai_proxy.config.options import BY_NAME, OPTIONS
from azure_openai_proxy.config.parsers import metrics_address, shared_state
from azure_openai_proxy.config.sources import command_line
from support import prometheus_rules
from support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = ROOT / "deploy"
VARIABLES = {variable for option in OPTIONS for variable in option.variables}
CONTAINERFILE = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROXIES = [name for name, service in SERVICES.items() if "build" in service]
KUBERNETES = {path.name: path.read_text() for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))}
RESOURCES: list[dict[str, Any]] = [resource for text in KUBERNETES.values() for resource in YAML(typ="safe", pure=True).load_all(text)]
WORKLOADS = [resource for resource in RESOURCES if resource["kind"] in ("Deployment", "StatefulSet")]
DOCUMENTS = [DEPLOY / "compose.yaml", *sorted((ROOT / "docs").glob("*.md"))]
PORT = 8080
LONGEST_SHUTDOWN = int(str(BY_NAME["azure_openai_shutdown_timeout"].default))
STATE = "/var/lib/azure-openai-proxy"
LEDGER, STATES = r"AZURE_OPENAI_LEDGER=(postgresql\S+)", r"AZURE_OPENAI_SHARED_STATE=(redis[^\s,]+)"


def instruction(name: str) -> list[str]:
    """The arguments of each such line of the Containerfile."""
    return re.findall(rf"(?m)^{name} +(.*)$", CONTAINERFILE)


def check_command(command: list[str]) -> None:
    """Its module exists, and its options are those of the proxy and mitmproxy."""
    assert ["python", "-m"] == command[:2]
    assert importlib.util.find_spec(command[2])
    check_options(command[3:])


def check_options(arguments: list[str]) -> None:
    given = command_line(arguments, Options())
    assert given.names
    with taddons.context(Block()) as mitmproxy:
        assert [] == [name for name in given.sets if name not in BY_NAME and name not in mitmproxy.options]
    assert STATE == given.sets["confdir"][0]


# The image


def test_the_image_s_command() -> None:
    """The entry point is a module, with options that exist; the working directory, the volume and the home are one folder."""
    (entry,) = instruction("ENTRYPOINT")
    check_command(json.loads(entry))
    assert [STATE] == instruction("VOLUME") == instruction("WORKDIR")
    assert f"HOME={STATE}" in CONTAINERFILE
    assert [str(PORT)] == instruction("EXPOSE")


def test_the_image_s_files() -> None:
    """Each file that is copied exists for each choice of LOCK, and .containerignore lets it through."""
    locks = {lock for path in DOCUMENTS for lock in re.findall(r"\bLOCK=([\w.-]+)", path.read_text())}
    copied = [line.split()[0] for line in instruction("COPY") if not line.startswith("--from")]
    assert "${LOCK}" in copied
    allowed = [line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")]
    assert {"requirements.lock", "requirements-extras.lock"} == locks | set(re.findall(r"ARG LOCK=(\S+)", CONTAINERFILE))
    for name in {*copied, *locks} - {"${LOCK}"}:
        assert (ROOT / name).exists()
        assert any(fnmatch(name, pattern) for pattern in allowed), name


def test_the_unit_s_command() -> None:
    """The options of the unit exist, and its state is the folder that it may write."""
    unit = (DEPLOY / "azure-openai-proxy.service").read_text()
    (start,) = re.findall(r"(?m)^ExecStart=(.*)$", unit)
    check_options(shlex.split(start)[1:])
    assert f"StateDirectory={PurePosixPath(STATE).name}\n" in unit
    (timeout,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
    assert int(timeout) > LONGEST_SHUTDOWN


# compose


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_of_compose(name: str) -> None:
    """It is built from files that are here; its variables are settings, its port is the image's, and it may finish its streams."""
    service = SERVICES[name]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert (ROOT / re.sub(r"\$\{LOCK:-(.*)\}", r"\1", service["build"]["args"]["LOCK"])).is_file()
    assert set(service["environment"]) <= VARIABLES
    for variable, value in service["environment"].items():
        assert value.startswith(f"${{{variable}:"), "it is the variable of the same name"
    assert [{"path": ".env", "required": False}] == service["env_file"], "other variables are in deploy/.env"
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert [PORT] == [int(port.rpartition(":")[2]) for port in service["ports"]]
    assert [f"ca:{STATE}"] == service["volumes"]
    assert int(service["stop_grace_period"].removesuffix("s")) > LONGEST_SHUTDOWN
    (health,) = instruction("HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == service["healthcheck"]["test"][1:]
    copied = {f"{target}{source}" for source, target in re.findall(r"COPY (?:\S*/)?(\S+) (/opt/\S+/)(?:\s|$)", CONTAINERFILE)}
    assert service["healthcheck"]["test"][-1] in copied


def test_the_services_of_compose() -> None:
    """Volumes are declared, mounted files exist, and a service has those it depends on in each of its profiles."""
    hosts = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(hosts) == len(set(hosts))
    assert all(host.startswith("127.0.0.1:") for host in hosts)
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert set(COMPOSE["volumes"]) == {volume for volume in volumes if not volume.startswith(".")}
    assert all((DEPLOY / volume).is_dir() for volume in volumes if volume.startswith("."))
    for service in SERVICES.values():
        for name, needed in service.get("depends_on", {}).items():
            assert set(SERVICES[name].get("profiles", service["profiles"])) >= set(service["profiles"])
            assert "service_healthy" == needed["condition"]
            assert "healthcheck" in SERVICES[name]
    (configuration,) = (part.partition("=")[2] for part in SERVICES["prometheus"]["command"] if part.startswith("--config.file="))
    assert (DEPLOY / "prometheus" / PurePosixPath(configuration).relative_to("/etc/prometheus")).is_file()


def test_a_service_of_compose_without_capabilities() -> None:
    """Images that start as root need capabilities to change the user, so such a service names its user or starts with another one."""
    not_root = {"docker.io/prom/prometheus", "azure-openai-proxy"}
    for service in SERVICES.values():
        if service.get("cap_drop") == ["ALL"]:
            assert "user" in service or service["image"].rpartition(":")[0] in not_root or service["image"] in not_root


def test_images_have_full_names() -> None:
    """podman asks for the registry of a short name."""
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    images += [each["image"] for each in containers() if not each["image"].startswith("azure-openai-proxy:")]
    assert all(re.fullmatch(r"[\w-]+(\.[\w-]+)+/[\w/-]+:v?\d[\w.]*", image) for image in images), images


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_of_compose(path: Any) -> None:
    """Each documented command names a file, a profile, a service and a module that exist."""
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    for line in re.findall(r"docker compose (.*)", path.read_text()):
        words = shlex.split(line.partition("#")[0].replace("`", ""))
        assert "deploy/compose.yaml" == words[words.index("-f") + 1]
        assert {value for flag, value in itertools.pairwise(words) if flag == "--profile"} <= profiles
        if "exec" in words:
            name, _, _, module = words[words.index("exec") + 1 :][:4]
            assert name in SERVICES
            assert importlib.util.find_spec(module)
        elif "--profile" in words:
            assert "--build" in words, "the image of a former start may lack the optional libraries"


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "docker compose" in path.read_text()], ids=lambda path: path.name)
def test_the_addresses_in_compose(path: Any) -> None:
    """The documented URLs name a service, its user and its database."""
    server = SERVICES["postgresql"]["environment"]
    for written in re.findall(LEDGER, path.read_text()):
        if "$POSTGRES_PASSWORD" in written:
            url = parse(written).url
            assert url.host in SERVICES
            assert (server["POSTGRES_USER"], server["POSTGRES_DB"]) == (url.username, url.database)
    for written in re.findall(STATES, path.read_text()):
        if "USER" not in written:
            assert re.split("[/:]+", shared_state(written) or "")[1] in SERVICES


# Kubernetes


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {resource["metadata"]["name"]: resource for resource in RESOURCES if resource["kind"] == kind}


def containers() -> Iterator[dict[str, Any]]:
    for workload in WORKLOADS:
        yield from workload["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload["metadata"]["name"])
def test_a_workload(workload: dict[str, Any]) -> None:
    """Its mounts have volumes, its variables a ConfigMap or a Secret with a command that makes it, and its probes a port."""
    spec = workload["spec"]
    pod = spec["template"]["spec"]
    volumes = {each["name"] for each in pod.get("volumes", ())} | {
        each["metadata"]["name"] for each in spec.get("volumeClaimTemplates", ())
    }
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    secrets = set(re.findall(r"kubectl create secret generic ([\w-]+)", "\n".join(KUBERNETES.values())))
    (container,) = pod["containers"]
    assert volumes == {mount["name"] for mount in container.get("volumeMounts", ())}
    for source in container.get("envFrom", ()):
        (kind, reference), *_ = source.items()
        assert reference["name"] in ({"configMapRef": named("ConfigMap"), "secretRef": secrets}[kind])
    ports = {port["name"] for port in container["ports"]}
    for probe in (container[name] for name in container if name.endswith("Probe")):
        assert "exec" in probe or (probe.get("httpGet") or probe.get("tcpSocket"))["port"] in ports
        if "httpGet" in probe:
            assert local_responses.is_probe(probe["httpGet"]["path"])
    if container["securityContext"].get("readOnlyRootFilesystem"):
        assert {STATE if "proxy" in container["name"] else "/data"} == {mount["mountPath"] for mount in container["volumeMounts"]}


def test_each_secret_is_created_once() -> None:
    """`kubectl create` fails for a Secret that exists. The file of the proxy is complete without the one of the file of the databases."""
    created = {name: re.findall(r"kubectl create secret generic ([\w-]+)", text) for name, text in KUBERNETES.items()}
    assert {
        "azure-openai-proxy.yaml": ["azure-openai-proxy"],
        "podmonitor.yaml": [],
        "teams.yaml": ["postgresql", "azure-openai-proxy-state"],
    } == created
    (container,) = named("Deployment")["azure-openai-proxy"]["spec"]["template"]["spec"]["containers"]
    secrets = [source["secretRef"] for source in container["envFrom"] if "secretRef" in source]
    assert [{"name": "azure-openai-proxy"}, {"name": "azure-openai-proxy-state", "optional": True}] == secrets


def test_the_services_of_kubernetes() -> None:
    """A Service selects one workload and leads to a port of its container; autoscaler, headless name and policy name existing ones."""
    by_name = {workload["metadata"]["name"]: workload for workload in WORKLOADS}
    for name, service in named("Service").items():
        (selected,) = [each for each in WORKLOADS if each["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]]
        assert name == selected["metadata"]["name"]
        (container,) = selected["spec"]["template"]["spec"]["containers"]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in container["ports"]}
    (scaler,) = named("HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    assert target["kind"] == by_name[target["name"]]["kind"]
    assert all(each["spec"]["serviceName"] in named("Service") for each in WORKLOADS if each["kind"] == "StatefulSet")
    (policy,) = named("NetworkPolicy").values()
    (labels,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert {"azure-openai-proxy"} == set(by_name) - set(labels["values"])


def test_the_proxy_s_ports_in_kubernetes() -> None:
    """The proxy listens where the image does, unless its settings have an address; its metrics are at the address of the comment."""
    assert "AZURE_OPENAI_PROXY_ADDRESS" not in named("ConfigMap")["azure-openai-proxy"]["data"]
    (container,) = named("Deployment")["azure-openai-proxy"]["spec"]["template"]["spec"]["containers"]
    (written,) = re.findall(r'# AZURE_OPENAI_METRICS: "(\S+)"', KUBERNETES["azure-openai-proxy.yaml"])
    address = metrics_address(written)
    assert address
    assert {"http": PORT, "metrics": address.port} == {port["name"]: port["containerPort"] for port in container["ports"]}


def test_the_pod_monitor() -> None:
    """It selects the proxy's pods and names a port of theirs; the job is the one of the alerts."""
    spec = named("PodMonitor")["azure-openai-proxy"]["spec"]
    pod = named("Deployment")["azure-openai-proxy"]["spec"]["template"]
    assert pod["metadata"]["labels"] == spec["selector"]["matchLabels"]
    (container,) = pod["spec"]["containers"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    assert f'up{{job="{pod["metadata"]["labels"][spec["jobLabel"]]}"}}' in prometheus_rules.alerts()["ProxyDown"]


def test_the_databases_of_the_replicas() -> None:
    """The Secret's URLs name the Services, their ports, the user and the database, and the passwords of both Secrets are one."""
    text = KUBERNETES["teams.yaml"]
    (ledger,), (state,) = re.findall(LEDGER, text), re.findall(STATES, text)
    url = parse(ledger).url
    services = named("Service")
    (container,) = named("StatefulSet")["postgresql"]["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert (url.username, url.database) == (environment["POSTGRES_USER"], environment["POSTGRES_DB"])
    assert url.host in services
    assert [url.password] == re.findall(r"POSTGRES_PASSWORD=(\S+)", text)
    assert 5432 == services[str(url.host)]["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    (mount,) = container["volumeMounts"]
    assert environment["PGDATA"].startswith(f"{mount['mountPath']}/")
    _, host, port = re.split("[/:]+", shared_state(state) or "")
    assert int(port) == services[host]["spec"]["ports"][0]["port"]
    probe = container["readinessProbe"]["exec"]["command"]
    assert ["--username", environment["POSTGRES_USER"], "--dbname", environment["POSTGRES_DB"]] == probe[1:]
