"""What deploy/ says is what its readers take: schema validators, the programs themselves."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from azure_openai_proxy.config.options import OPTIONS
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"
MANIFESTS = DEPLOY / "kubernetes" / "azure-openai-proxy.yaml"
SERVICE = DEPLOY / "azure-openai-proxy.service"
VARIABLES = {variable for option in OPTIONS for variable in option.variables}
ORIGINAL = {
    f"AZURE_OPENAI_{name}" for name in ("ENDPOINT", "TOKEN", "APIVERSION", "MODEL_MAPPER", "PROXY_MODE")
}  # the address is what the ports are mapped to


def manifests() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in YAML(typ="safe", pure=True).load_all(MANIFESTS.read_text())}


@pytest.mark.skipif(not importlib.util.find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed")
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
    assert ORIGINAL == set(service["environment"])
    assert VARIABLES >= ORIGINAL
    assert (True, ["ALL"]) == (service["read_only"], service["cap_drop"])


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
    """Whatever is named AZURE_OPENAI_... in there is a setting."""
    named = set(re.findall(r"AZURE_OPENAI_[A-Z_]+[A-Z]", path.read_text())) if path.is_file() else set()
    assert VARIABLES >= named
