"""The machine's devices and memory: processors and main memory within this process's limits, GPUs as ggml sees them."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import psutil

from shardnet.limits.cgroups import read_text
from shardnet.limits.memory import Room, room_here
from shardnet.limits.processors import Processors, usable_processors
from shardnet.log import counted
from shardnet.messages import DeviceInfo

GGML_DEVICE_GPU, GGML_DEVICE_INTEGRATED_GPU = 1, 2  # enum ggml_backend_dev_type

STACK_BYTES, ARENA_BYTES = 8 << 20, 96 << 20
"""What llama.cpp's threads, its graphs and the C library's allocator reserve of the address space. Where they get none, the process ends."""


def processors() -> Processors:
    """Returns: threads that this process can keep busy: physical cores, or fewer where something bounds them."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable_processors(psutil.cpu_count(logical=False) or bound)


def free_threads() -> int:
    """Returns: threads that would run at once beside what runs on this machine now; at least one, and no more than `usable_threads`.

    Source: proc_loadavg(5): the fourth number counts what is runnable at this moment, its reader too.
    """
    words = read_text(Path("/proc/loadavg")).split()
    runnable = words[3].partition("/")[0] if len(words) > 3 else ""
    others = int(runnable) - 1 if runnable.isdecimal() else 0
    return max(1, min(usable_threads(), (os.cpu_count() or 1) - others))


def usable_threads() -> int:
    """Returns: physical cores, or fewer if this process may use fewer."""
    return processors().threads


def main_memory(mapped_bytes: int = 0) -> Room:
    """Returns: main memory that this process can have.

    Args:
        mapped_bytes: weights that it reads from mapped files. To the kernel they are page cache, which it would drop, and read again for each token.
    """
    return room_here(reserved_bytes=ARENA_BYTES + STACK_BYTES * usable_threads(), mapped_bytes=mapped_bytes)


def cpu_device(mapped_bytes: int = 0) -> DeviceInfo:
    """Returns: the processor, with main memory; `mapped_bytes` as in `main_memory`."""
    room, cores = main_memory(mapped_bytes), processors()
    return DeviceInfo(
        name="CPU",
        description=f"{counted(cores.threads, 'core')}{f' ({cores.limit})' if cores.limit else ''}"[:200],
        kind="cpu",
        total_bytes=room.total_bytes,
        free_bytes=room.free_bytes,
        limit=str(room.bound or "")[:200],
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


def instruction_sets() -> str:
    """Returns: what this build of llama.cpp computes with, as `AVX AVX2 FMA`: numbers differ between builds that differ in it. Loads llama.cpp."""
    import llama_cpp

    return " ".join(re.findall(r"(\w+) = 1\b", llama_cpp.llama_print_system_info().decode(errors="replace")))


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


def all_devices(mapped_bytes: int = 0) -> tuple[DeviceInfo, ...]:
    """Returns: the processor, then the GPUs; `mapped_bytes` as in `main_memory`."""
    gpus = gpu_devices()  # first: it takes llama.cpp into memory
    return (cpu_device(mapped_bytes), *gpus)
