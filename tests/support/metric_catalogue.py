"""All families of figures that any daemon declares, and the names by which queries may ask for them."""

from __future__ import annotations

from prometheus_client import ProcessCollector

from shardnet.coordinator.metrics import families
from shardnet.metrics import dht_figures, vitals
from shardnet.metrics.family import Family, declared
from shardnet.node import figures

MODULES = {"coordinator": families, "node": figures, "both": vitals, "DHT": dht_figures}
FAMILIES: list[Family] = [one for module in MODULES.values() for one in declared(module)]
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def process_names(namespace: str = "") -> set[str]:
    """Returns: names of what prometheus-client tells of a process."""
    found = ProcessCollector(namespace=namespace, registry=None).collect()
    return {f"{one.name}_total" if one.type == "counter" else one.name for one in found}


def asked_names() -> set[str]:
    """Returns: every name of a series."""
    names = process_names() | process_names(figures.ENGINE)
    for one in FAMILIES:
        names |= {one.name + part for part in PARTS.get(one.kind, ("",))}
    return names
