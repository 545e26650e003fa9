"""One model on the processor, split between it and a second device, and on that alone: layers, tokens, the largest difference of a logit.

python -m tests.bench.device_run [MODEL.gguf] [--build-vulkan FOLDER] [--tokens 32]

Prints JSON lines. The second device is the first GPU of this build of llama.cpp. Where there is none, on any Linux machine, `--build-vulkan` compiles
ggml's Vulkan backend from llama.cpp's sources into FOLDER (once) and loads it into the installed llama.cpp as a module; Mesa's software driver makes
the processor a Vulkan device. That takes Debian's mesa-vulkan-drivers, libvulkan-dev, glslc, spirv-headers, cmake and ninja-build. Not part of CI.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardnet.bench.world import prompt_of
from shardnet.errors import UsageError
from shardnet.inference.engine.device_map import Space, Wish, plan_devices
from shardnet.inference.engine.shard_cost import cost_of
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.devices import all_devices, gpu_devices
from shardnet.inference.llama.model import LLAMA_CPP_VERSION, LlamaContext, LlamaModel
from shardnet.inference.llama.placing import Placing
from shardnet.local.model import find_demo_model
from shardnet.messages import ShardOptions

PROMPT_TOKENS = 48
N_CTX = 256
MODULE = "build/bin/libggml-vulkan.so"
CMAKE = (
    "-G=Ninja",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_VULKAN=ON",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TOOLS", "TESTS", "EXAMPLES", "SERVER")),
)

OLD_HEADERS = """
// Vulkan's C++ headers before 1.3.272, as Debian 12 has them, lack VK_EXT_layer_settings, which ggml names for debugging.
// Source: the Vulkan registry.
#pragma once
#include_next <vulkan/vulkan.hpp>
#if VK_HEADER_VERSION < 272
#include <vector>
namespace vk {
enum class LayerSettingTypeEXT : int { eBool32 = 0 };
struct LayerSettingEXT {
    const char *pLayerName, *pSettingName;
    LayerSettingTypeEXT type;
    uint32_t valueCount;
    const void *pValues;
};
struct LayerSettingsCreateInfoEXT {
    VkStructureType sType = static_cast<VkStructureType>(1000496000);
    const void *pNext = nullptr;
    uint32_t settingCount;
    const LayerSettingEXT *pSettings;
    LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> &all) : settingCount(all.size()), pSettings(all.data()) {}
};
}
#endif
"""


def tell(**facts: object) -> None:
    """One line of the result."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def build_vulkan(folder: Path) -> Path:
    """Returns: ggml's Vulkan backend for the installed llama.cpp, compiled if it is not there."""
    module = folder / MODULE
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    sources = folder / "llama.cpp"
    if not sources.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "-d",
            str(folder),
        ]
        subprocess.run([*pip, f"llama-cpp-python=={LLAMA_CPP_VERSION}"], check=True)
        (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (folder / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp").rename(sources)
    overlay = folder / "headers"
    (overlay / "vulkan").mkdir(parents=True, exist_ok=True)
    (overlay / "vulkan" / "vulkan.hpp").write_text(OLD_HEADERS)
    configure = [
        "cmake",
        "-S",
        str(sources),
        "-B",
        str(folder / "build"),
        *CMAKE,
        f"-DCMAKE_CXX_FLAGS=-I{overlay.absolute()}",
    ]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(folder / "build"), "--target", "ggml-vulkan"], check=True)
    return module


def load_module(module: Path) -> None:
    """Make a backend known to the llama.cpp of this process."""
    from llama_cpp._ggml import libggml

    os.environ.setdefault(
        "GGML_VK_VISIBLE_DEVICES", "0"
    )  # else ggml leaves out a driver that computes on the processor
    load = libggml.ggml_backend_load
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if not load(os.fsencode(module)):
        raise UsageError(f"llama.cpp cannot load {module}")


class Run:
    """What a placing gave: logits of every step, greedy tokens, time, and where llama.cpp put things."""

    def __init__(
        self, path: Path, placing: Placing, prompt: Sequence[int], n_tokens: int, forced: Sequence[int]
    ) -> None:
        with LlamaModel(path, placing=placing) as model, LlamaContext(model, n_ctx=N_CTX, n_batch=64) as context:
            self.buffers = model.buffers | context.buffers
            context.decode(single_sequence_rows(0, len(prompt), tokens=list(prompt), outputs=[len(prompt) - 1]))
            rows = [context.logits(len(prompt) - 1).copy()]
            began_s = time.perf_counter()
            self.tokens: list[int] = []
            for index in range(n_tokens):
                self.tokens.append(int(rows[-1].argmax()))
                following = forced[index] if forced else self.tokens[-1]
                context.decode(single_sequence_rows(len(prompt) + index, 1, tokens=[following], outputs=[0]))
                rows.append(context.logits(0).copy())
            self.tokens_per_s = n_tokens / (time.perf_counter() - began_s)
        self.logits: NDArray[np.float32] = np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--build-vulkan", type=Path, metavar="FOLDER")
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    path = arguments.model or find_demo_model()
    if arguments.build_vulkan is not None:
        load_module(build_vulkan(arguments.build_vulkan))
    for device in all_devices():
        tell(device=device.name, kind=device.kind, description=device.description, free_bytes=device.free_bytes)
    gpus = gpu_devices()
    if not gpus:
        raise SystemExit("no second device: give --build-vulkan, or install llama.cpp with CUDA")
    prompt = prompt_of(1, PROMPT_TOKENS)
    cost, options = cost_of(path), ShardOptions(n_ctx=N_CTX, n_seq=1, n_batch=64)
    spaces = [Space(gpu.name, gpu.free_bytes) for gpu in gpus]
    n_layers, name = len(cost.layer_bytes), spaces[0].name
    half = f"CPU={n_layers - n_layers // 2},{name}={n_layers // 2}"
    wishes = {
        "processor": Wish(n_gpu_layers=0),
        "both": Wish(half),
        "second device": Wish(f"{name}={n_layers}"),
        "auto": Wish(),
    }
    truth: Run | None = None
    for title, wish in wishes.items():
        plan = plan_devices(cost, options, spaces, wish)
        placing = Placing(plan.n_gpu_layers, plan.gpus, plan.tensor_split, plan.overrides)
        run = Run(path, placing, prompt, arguments.tokens, truth.tokens if truth is not None else ())
        truth = truth or run
        tell(
            run=title,
            layers=plan.sentences(cost),
            buffers=run.buffers,
            tokens_per_s=round(run.tokens_per_s, 2),
            tokens_equal=run.tokens == truth.tokens,
            n_equal=sum(one == other for one, other in zip(run.tokens, truth.tokens, strict=True)),
            largest_logit_difference=float(np.abs(run.logits - truth.logits).max()),
            largest_logit=float(np.abs(truth.logits).max()),
        )


if __name__ == "__main__":
    main()
