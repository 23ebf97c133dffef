"""What deploy/ says is what its readers take: schema validators, the programs themselves."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import scale
from ruamel.yaml import YAML

from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.metric_names import metrics
from azure_openai_proxy.config.options import OPTIONS
from azure_openai_proxy.config.parsers import Address, shared_state
from support import prometheus_rules
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"
MANIFESTS = DEPLOY / "kubernetes" / "azure-openai-proxy.yaml"
SERVICE = DEPLOY / "azure-openai-proxy.service"
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
VARIABLES = {variable for option in OPTIONS for variable in option.variables}
ORIGINAL = {
    f"AZURE_OPENAI_{name}" for name in ("ENDPOINT", "TOKEN", "APIVERSION", "MODEL_MAPPER", "PROXY_MODE")
}  # the address is what the ports are mapped to


def manifests() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in YAML(typ="safe", pure=True).load_all(MANIFESTS.read_text())}


@pytest.mark.skipif(not importlib.util.find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed")
@pytest.mark.slow
def test_kubernetes_takes_the_manifests() -> None:
    """By Kubernetes' own schemas, no field too many."""
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", str(MANIFESTS)], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    assert 5 == (done.stdout + done.stderr).count("passed for resource")


def test_every_kind_is_there_and_they_fit() -> None:
    """Labels that select, ports and secrets that exist, time enough to stop."""
    kinds = manifests()
    assert {"ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} == set(kinds)
    pod = kinds["Deployment"]["spec"]["template"]
    for selector in (kinds["Service"]["spec"]["selector"], kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]):
        assert pod["metadata"]["labels"] == selector
    assert kinds["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1
    assert VARIABLES >= set(kinds["ConfigMap"]["data"])
    limit = int(kinds["ConfigMap"]["data"]["AZURE_OPENAI_SHUTDOWN_TIMEOUT"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > limit + 5


def test_compose_has_the_original_s_variables() -> None:
    """And nothing that this proxy does not know."""
    service = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]["azure-openai-proxy"]
    assert ORIGINAL | {"AZURE_OPENAI_METRICS", "AZURE_OPENAI_LEDGER", "AZURE_OPENAI_SHARED_STATE"} == set(service["environment"])
    assert VARIABLES >= ORIGINAL
    assert (True, ["ALL"]) == (service["read_only"], service["cap_drop"])


def test_compose_has_prometheus_in_a_profile() -> None:
    """Prometheus starts with its profile only, with a configuration that names the proxy's service and port, and an image with metrics."""
    services = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]
    assert ["metrics"] == services["prometheus"]["profiles"]
    assert "./prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    assert "--config.file=/etc/prometheus/compose.yml" in services["prometheus"]["command"]
    assert ["azure-openai-proxy:9464"] == targets("compose.yml")
    lock = (ROOT / "requirements-extras.lock").read_text()
    named = {re.split(r"[\[>=<]", entry)[0] for entries in EXTRAS.values() for entry in entries}
    assert named <= {line.partition("==")[0].partition("[")[0] for line in lock.splitlines()}


def test_compose_has_postgresql_in_a_profile() -> None:
    """PostgreSQL starts with its profile only, and the URL in the document names its service, user and database."""
    server = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]["postgresql"]
    assert ["ledger", "teams"] == server["profiles"]
    assert "ports" not in server
    (written,) = re.findall(r"AZURE_OPENAI_LEDGER=(postgresql\S+usage)$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    url = parse(written).url
    assert ("postgresql", server["environment"]["POSTGRES_USER"], server["environment"]["POSTGRES_DB"]) == (
        url.host,
        url.username,
        url.database,
    )
    assert written in (DEPLOY / "compose.yaml").read_text()


def test_compose_has_two_replicas_in_a_profile() -> None:
    """The profile has a second replica like the first one, and Valkey, which the documented URL names."""
    services = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]
    first, second = services["azure-openai-proxy"], services["azure-openai-proxy-2"]
    assert first == {name: first["ports"] if name == "ports" else value for name, value in second.items() if name in first}
    assert [["teams"], ["teams"]] == [second["profiles"], services["valkey"]["profiles"]]
    assert first["ports"] != second["ports"]
    for document in (DEPLOY / "compose.yaml", MANIFESTS.with_name("teams.yaml"), ROOT / "docs" / "teams.md"):
        assert "AZURE_OPENAI_SHARED_STATE=redis://valkey:6379" in document.read_text()
    assert "redis://valkey:6379" == shared_state("redis://valkey:6379")


@pytest.mark.skipif(not importlib.util.find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed")
@pytest.mark.slow
def test_kubernetes_takes_the_manifests_of_the_shared_state() -> None:
    """Valkey and PostgreSQL fit the schemas, their services select them, and only the proxy may connect to them."""
    file = MANIFESTS.with_name("teams.yaml")
    done = subprocess.run([sys.executable, "-m", "kubernetes_validate", "--strict", str(file)], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    found = {(each["kind"], each["metadata"]["name"]): each["spec"] for each in YAML(typ="safe", pure=True).load_all(file.read_text())}
    for kind, name in (("Deployment", "valkey"), ("StatefulSet", "postgresql")):
        assert found["Service", name]["selector"] == found[kind, name]["template"]["metadata"]["labels"]
    (allowed,) = found["NetworkPolicy", "azure-openai-proxy-state"]["ingress"][0]["from"]
    assert manifests()["Service"]["spec"]["selector"] == allowed["podSelector"]["matchLabels"]


def test_the_scrape_configuration_lists_the_processes() -> None:
    """The targets are the ports that `make scale N=4` gives the processes."""
    first = Address("127.0.0.1", 9464)
    assert [str(scale.following(first, number)) for number in range(4)] == targets("prometheus.yml")


def targets(name: str) -> list[str]:
    """The targets of a scrape configuration; it has the alert rules too."""
    configuration = YAML(typ="safe", pure=True).load((DEPLOY / "prometheus" / name).read_text())
    assert ["alerts.yml"] == configuration["rule_files"]
    (job,) = configuration["scrape_configs"]
    return [target for group in job["static_configs"] for target in group["targets"]]


def test_the_dashboard_and_the_alerts_use_metrics_that_exist() -> None:
    """Every metric and label in an expression is one of the table, and every counter, histogram and gauge of the proxy is shown."""
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    table = {metric.prometheus + suffix: metric for metric in metrics("1.41") for suffix in suffixes[metric.kind]}
    labels = {"le", "job", "instance"} | {label for metric in table.values() for label in metric.prometheus_labels}
    shown = set()
    for expression in (*prometheus_rules.dashboard(), *prometheus_rules.alerts().values()):
        names = set(re.findall(r"\b(?:azure_openai_proxy|gen_ai_client)_\w+", expression))
        assert names <= set(table), expression
        shown |= {table[name] for name in names}
        used = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.findall(r"\w+", group)}
        used |= set(re.findall(r"(\w+)=~?\"", expression))
        assert used <= labels, expression
    assert set(metrics("1.41")) == shown


def test_the_dashboard_can_be_imported() -> None:
    """Panels have unique numbers and do not overlap, and every query goes to the chosen data source."""
    panels = prometheus_rules.panels()
    assert len(panels) == len({panel["id"] for panel in panels})
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        assert all(target["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for target in panel["targets"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Every directive is known to it, and the service is as locked up as it says."""
    unit = tmp_path / SERVICE.name
    unit.write_text(re.sub("ExecStart=.*", "ExecStart=/bin/true", SERVICE.read_text()))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "" == verified.stderr
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit)], capture_output=True, text=True, check=False
    )
    assert 0 == exposed.returncode, exposed.stdout


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_variables_exist(path: Path) -> None:
    """Each AZURE_OPENAI_... name in these files is a setting."""
    named = set(re.findall(r"AZURE_OPENAI_[A-Z_]+[A-Z]", path.read_text())) if path.is_file() else set()
    assert VARIABLES >= named
