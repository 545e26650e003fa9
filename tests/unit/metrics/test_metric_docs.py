"""docs/metrics.md, the dashboard and the alerts speak of the figures that there are, and of all of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.metrics.family import Family
from tests.support.metric_catalogue import FAMILIES, PARTS, asked_names

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "configs/grafana/shardnet.json").read_text(encoding="utf-8"))
ALERTS = ROOT / "configs/prometheus"
NAME = re.compile(r"\b((?:shardnet|process)_[a-z0-9_]+)")
UNITS = ("_seconds", "_bytes", "_ratio", "_rows", "_bytes_left", "_bytes_per_second", "_info")


def asked(node: Any) -> Iterator[str]:
    """Yield every expression of a dashboard."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "definition") and isinstance(value, str):
                yield value
            else:
                yield from asked(value)
    elif isinstance(node, list):
        for one in node:
            yield from asked(one)


EXPRESSIONS = list(asked(DASHBOARD))


def row(one: Family) -> str:
    return f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"


def test_every_name_is_there_once_and_follows_the_conventions() -> None:
    assert [name for name, times in Counter(one.name for one in FAMILIES).items() if times > 1] == []
    for one in FAMILIES:
        assert re.fullmatch(r"shardnet_[a-z]+(_[a-z]+)*", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert one.kind in ("counter", "gauge") or one.name.endswith(UNITS), f"{one.name} has no unit"
        assert one.help.endswith("."), one.name


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_each_figure_stands_on_the_page_as_it_is(one: Family) -> None:
    assert row(one) in PAGE.splitlines(), f"docs/metrics.md needs this line:\n{row(one)}"


def test_the_page_names_nothing_else() -> None:
    assert set(NAME.findall(PAGE)) - asked_names() - {one.name for one in FAMILIES} == set()


def test_the_dashboard_asks_for_figures_that_there_are_and_for_each_of_them() -> None:
    names = {name for expression in EXPRESSIONS for name in NAME.findall(expression)}
    assert names - asked_names() == set()
    shown = {one.name for one in FAMILIES if names & {one.name + part for part in PARTS.get(one.kind, ("",))}}
    assert {one.name for one in FAMILIES} - shown == set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_alerts_ask_for_figures_that_there_are() -> None:
    for path in sorted(ALERTS.glob("*.yml")):
        assert set(NAME.findall(path.read_text(encoding="utf-8"))) <= asked_names()


def promtool(*arguments: str | Path) -> None:
    told = subprocess.run([str(shutil.which("promtool")), *map(str, arguments)], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@needs_promtool
def test_promtool_takes_the_configuration_and_each_alert_comes_when_it_should() -> None:
    promtool("check", "config", ALERTS / "prometheus.yml")
    promtool("test", "rules", ALERTS / "shardnet.rules.test.yml")


@needs_promtool
def test_promtool_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [one.replace("$__rate_interval", "1m") for one in EXPRESSIONS if not one.startswith("label_values")]
    rules = [{"record": f"rule:{number}", "expr": one} for number, one in enumerate(expressions)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", path)
