"""Where shards can run on this machine, and which of them runs where: `detect_devices`, `assign_shards`.

A device has the name that llama.cpp gives it, in the usual spelling: "cpu", "cuda:0", "rocm:1", "vulkan:0".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shardnet.errors import UsageError
from shardnet.inference.llama.devices import all_devices
from shardnet.log import counted

CPU = "cpu"
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES", "vulkan": "GGML_VK_VISIBLE_DEVICES"}
"""The variables by which a process is shown some GPUs only. Source: the CUDA and HIP programming guides; ggml-vulkan.cpp."""
NONE = "-1"


def detect_devices() -> list[str]:
    """Look for GPUs that this build of llama.cpp can use; loads it into this process.

    Returns: the GPUs, then "cpu": `["cuda:0", "cuda:1", "cpu"]`.
    """
    found = all_devices()
    return [spelled(device.name) for device in found if device.kind == "gpu"] + [CPU]


def assign_shards(
    n_shards: int, devices: Sequence[str] | None = None, *, neighbours_together: bool = False
) -> dict[int, str]:
    """Say which shard runs on which device.

    Args:
        devices: `detect_devices()` if None.
        neighbours_together: give each device shards that follow one another, so that hidden states change devices as seldom as can be. Else the
            devices take turns.

    Returns: shard number -> device: `{0: "cuda:0", 1: "cuda:1", 2: "cuda:0", 3: "cuda:1"}`.

    Raises: UsageError if there are no shards or no devices.
    """
    chosen = detect_devices() if devices is None else [spelled(device) for device in devices]
    if n_shards < 1 or not chosen:
        raise UsageError(
            f"{counted(n_shards, 'shard')} cannot be assigned to {counted(len(chosen), 'device')}: give at least one of each"
        )
    if not neighbours_together:
        return {shard: chosen[shard % len(chosen)] for shard in range(n_shards)}
    used = min(len(chosen), n_shards)
    return {shard: chosen[shard * used // n_shards] for shard in range(n_shards)}


def spelled(name: str) -> str:
    """Returns: a device's name in the usual spelling: "cuda:0" for "CUDA0". Raises: UsageError if it is none."""
    found = re.fullmatch(r"([A-Za-z]+):?(\d*)", name)
    if found is None:
        raise UsageError(f"{name!r} is no name of a device: write cpu, cuda:0, ...")
    kind, number = found[1].lower(), found[2]
    return f"{kind}:{number}" if number else kind


@dataclass(frozen=True, slots=True)
class Binding:
    """How an engine process is kept to one device: variables for it, and layers on GPUs."""

    n_gpu_layers: int | Literal["auto"]
    environment: dict[str, str] = field(default_factory=dict)


def bind(device: str, environ: Mapping[str, str]) -> Binding:
    """Returns: what keeps a process to a device, given the variables that it would have. Raises: UsageError if that cannot be done."""
    kind, _, number = spelled(device).partition(":")
    if kind == CPU:
        return Binding(0, {VISIBLE["cuda"]: NONE, VISIBLE["rocm"]: NONE})
    variable = VISIBLE.get(kind)
    if variable is None or not number:
        raise UsageError(
            f"shards cannot be kept to the device {device!r}: there are cpu, {', '.join(f'{one}:0' for one in VISIBLE)}, ..."
        )
    shown = environ.get(variable)
    if shown is None:
        return Binding("auto", {variable: number})
    visible = shown.split(",")  # device 0 is the first of these
    if int(number) >= len(visible):
        raise UsageError(f"there is no device {device!r}: {variable} shows {len(visible)} of them")
    return Binding("auto", {variable: visible[int(number)]})
