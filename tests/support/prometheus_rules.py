"""The expressions of the Grafana dashboard and of the alert rules in deploy/."""

from __future__ import annotations

import json
import re
from typing import Any

from ruamel.yaml import YAML

from .processes import ROOT

__all__ = ["ALERTS", "alerts", "dashboard", "panels", "without_comparison"]

DASHBOARD = ROOT / "deploy" / "grafana" / "azure-openai-proxy.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
_COMPARISON = re.compile(r" (?:==|!=|>=?|<=?) [0-9.]+$")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def dashboard(window: str = "5m", **variables: str) -> list[str]:
    """The expressions of all panels, with `window` for Grafana's intervals and `variables` (default: any value) for the dashboard's."""
    text = DASHBOARD.read_text(encoding="utf-8")
    names = [variable["name"] for variable in json.loads(text)["templating"]["list"] if variable["type"] == "query"]
    values = {"__rate_interval": window, "__range": window, **dict.fromkeys(names, ".*"), **variables}
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [re.sub(r"\$(\w+)", lambda match: values[match[1]], expression) for expression in expressions]


def alerts() -> dict[str, str]:
    """The expression of each alert, by its name."""
    groups = YAML(typ="safe", pure=True).load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def without_comparison(expression: str) -> str:
    """The part of an alert's expression whose value is compared with a limit."""
    found, count = _COMPARISON.subn("", expression)
    assert count == 1, expression
    return found
