"""The machine's devices and memory: CPU cores that this process may use, main memory within its container's limit, GPUs as ggml sees them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import psutil

from shardnet.messages import DeviceInfo

GGML_DEVICE_GPU, GGML_DEVICE_INTEGRATED_GPU = 1, 2  # enum ggml_backend_dev_type
CGROUP = Path("/sys/fs/cgroup")


def usable_threads() -> int:
    """Returns: physical cores, or fewer if this process is bound to fewer processors."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or bound, bound))


def cgroup_memory(folder: Path = CGROUP) -> tuple[int, int] | None:
    """Returns: (limit, free) bytes of the container that this process runs in, or None if it has no limit.

    Page cache that the kernel can drop counts as free. Source: the kernel's cgroup-v2.rst.
    """
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        rows = (folder / "memory.stat").read_text().splitlines()
        droppable = sum(int(row.split()[1]) for row in rows if row.startswith(("inactive_file ", "active_file ")))
    except (OSError, ValueError, IndexError):  # no such file, or the word "max"
        return None
    return limit, max(0, limit - used + min(droppable, used))


def main_memory() -> tuple[int, int]:
    """Returns: (total, free) bytes of main memory that this process can have."""
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    container = cgroup_memory()
    return (total, free) if container is None else (min(total, container[0]), min(free, container[1]))


def cpu_device() -> DeviceInfo:
    """Returns: the processor, with main memory."""
    total, free = main_memory()
    threads = usable_threads()
    return DeviceInfo(
        name="CPU",
        description=f"{threads} core{'s' if threads != 1 else ''}",
        kind="cpu",
        total_bytes=total,
        free_bytes=free,
    )


def gpu_devices() -> tuple[DeviceInfo, ...]:
    """Returns: the GPUs that this build of llama.cpp can use. Loads llama.cpp, so it is called in the engine process or in a command."""
    import llama_cpp
    from llama_cpp._ggml import libggml

    llama_cpp.llama_backend_init()
    count, get, kind, name, description, memory = _device_functions(libggml)
    found = []
    for index in range(count()):
        device = get(index)
        if kind(device) not in (GGML_DEVICE_GPU, GGML_DEVICE_INTEGRATED_GPU):
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            DeviceInfo(
                name=name(device).decode(errors="replace")[:64],
                description=description(device).decode(errors="replace")[:200],
                kind="gpu",
                total_bytes=total.value,
                free_bytes=min(free.value, total.value),
            )
        )
    return tuple(found)


def _device_functions(library: Any) -> tuple[Any, ...]:
    """Source: ggml-backend.h. The functions live in libggml, which finds those of libggml-base."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures: tuple[tuple[str, Any, list[Any]], ...] = (
        ("ggml_backend_dev_count", size, []),
        ("ggml_backend_dev_get", pointer, [size]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_backend_dev_name", ctypes.c_char_p, [pointer]),
        ("ggml_backend_dev_description", ctypes.c_char_p, [pointer]),
        ("ggml_backend_dev_memory", None, [pointer, ctypes.POINTER(size), ctypes.POINTER(size)]),
    )
    functions = []
    for name, result, arguments in signatures:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        functions.append(function)
    return tuple(functions)


def all_devices() -> tuple[DeviceInfo, ...]:
    """Returns: the processor, then the GPUs."""
    return (cpu_device(), *gpu_devices())
