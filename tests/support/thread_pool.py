"""llama.cpp's own thread pool, which a build of it with `GGML_OPENMP=OFF` computes with, and how long its threads poll for work.

Source: `ggml_threadpool_params` in ggml.h, `ggml_threadpool_new` in ggml-cpu.h, `llama_attach_threadpool` in llama.h, which llama-cpp-python has no
names for. With OpenMP a pool may be attached too: its threads and its polling go unused then, its processor mask does not.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

LIBRARIES = "LLAMA_CPP_LIB_PATH"
"""The environment variable by which llama-cpp-python is told of a folder with other libraries than its own."""
MAX_THREADS = 512


class PoolParams(ctypes.Structure):
    """`struct ggml_threadpool_params`."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def attach(context: int, threads: int, poll: int) -> None:
    """Have a context of this process computed by a pool of so many threads, to the process's end.

    Args:
        context: address of a `llama_context`, of the libraries that `LIBRARIES` names.
        poll: 0 sleeps at once, 100 polls longest; llama.cpp's default is 50.
    """
    folder = Path(os.environ[LIBRARIES])
    ggml, llama = ctypes.CDLL(str(folder / "libggml-cpu.so")), ctypes.CDLL(str(folder / "libllama.so"))
    ggml.ggml_threadpool_new.restype = ctypes.c_void_p
    llama.llama_attach_threadpool.argtypes = (ctypes.c_void_p,) * 3
    pool = ctypes.c_void_p(ggml.ggml_threadpool_new(ctypes.byref(PoolParams(n_threads=threads, poll=poll))))
    llama.llama_attach_threadpool(context, pool, pool)
