"""Figures as a scraper gets them: parsed by prometheus-client, and looked over by promtool where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def families(text: str, kind: str) -> list[Metric]:
    """Returns: what the text says. Raises: ValueError if it is not what its content type says it is. Args: kind: the content type."""
    parse = parse_openmetrics if kind.startswith("application/openmetrics-text") else parse_plain
    return list(parse(text))


def samples(text: str) -> Samples:
    """Returns: (name, labels) -> value of every sample of a plain text."""
    found: Samples = {}
    for family in parse_plain(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def value(found: Samples, name: str, labels: Mapping[str, str] | None = None) -> float:
    """Returns: one of them; of several, whose labels say more, the sum."""
    wanted = set((labels or {}).items())
    values = [one for (other, has), one in found.items() if other == name and wanted <= set(has)]
    assert values, f"there is no {name} {labels or ''}"
    return sum(values)


def check_metrics(text: str) -> None:
    """Have promtool look the text over, where it is installed. Its `check metrics` reads it from standard input, and lints."""
    promtool = shutil.which("promtool")
    if promtool is None:
        assert families(text, "text/plain")
        return
    told = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout + told.stderr) == (0, "")
