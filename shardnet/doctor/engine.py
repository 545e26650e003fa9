"""llama.cpp: was it built with what this machine's processor and GPU can do?"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shardnet.children import python_module
from shardnet.doctor.findings import Finding
from shardnet.errors import DeadlineExceeded
from shardnet.inference.engine.spawning import how_it_ended
from shardnet.limits.cgroups import read_text
from shardnet.packages import LLAMA, installed, required

TIMEOUT_S = 15.0
"""A second or two on an idle machine; a driver that hangs would never come back."""
BUILT_FOR = {"AVX": "avx", "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "BMI2": "bmi2", "AVX512": "avx512f"}
"""What llama.cpp calls an instruction set, and what Linux calls it. Source: ggml-cpu.cpp (features), proc_cpuinfo(5)."""
NEEDED = frozenset({"AVX", "AVX2", "FMA", "F16C"})
"""Without these a token takes several times as long; without the others somewhat longer."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """llama.cpp and the machine that it runs on.

    Attributes:
        ended: how the process ended that was to ask it; "": in order.
        words: what it said last.
        built: instruction sets of the build; `processor`: flags of this machine's processor.
        offloads: it was built for some GPU; `gpus`: those that it can use.
        nvidia, render: devices of an NVIDIA driver, and of any other GPU's, that are there.
        native: shardnet's own compiled part is there.
    """

    ended: str = ""
    words: str = ""
    built: frozenset[str] = frozenset()
    processor: frozenset[str] = frozenset()
    offloads: bool = False
    gpus: tuple[str, ...] = ()
    nvidia: tuple[str, ...] = ()
    render: tuple[str, ...] = ()
    native: bool = True
    version: str = ""


def engine_findings(facts: EngineFacts) -> list[Finding]:
    """Decide about llama.cpp."""
    if facts.ended:
        words = f" ({facts.words})" if facts.words else ""
        why = (
            ": it was built for a processor with more instruction sets than this one has"
            if "SIGILL" in facts.ended
            else ""
        )
        return [Finding("llama.cpp", "fault", f"it cannot be loaded here, {facts.ended}{words}{why}", rebuild())]
    found = []
    able = {name for name, flag in BUILT_FOR.items() if flag in facts.processor}
    lacking = [name for name in BUILT_FOR if name in able - facts.built] if facts.built else []
    if needed := [name for name in lacking if name in NEEDED]:
        found.append(
            Finding(
                "llama.cpp",
                "warning",
                f"it was built without {', '.join(needed)}, which this processor has: tokens take several times as long",
                rebuild("-DGGML_NATIVE=ON"),
            )
        )
    elif lacking:
        found.append(
            Finding(
                "llama.cpp",
                "note",
                f"it was built without {', '.join(lacking)}, which this processor has",
                rebuild("-DGGML_NATIVE=ON"),
            )
        )
    found += _about_gpus(facts)
    if not facts.native:
        found.append(
            Finding(
                "llama.cpp",
                "warning",
                "shardnet's compiled part (_capture) is not there: each layer takes some 30 µs longer, and small models are slow",
                "Install shardnet again where gcc is",
            )
        )
    if not found:
        sets = ", ".join(name for name in BUILT_FOR if name in facts.built) or "no instruction set that it names"
        found.append(
            Finding(
                "llama.cpp",
                "ok",
                f"{LLAMA} {facts.version}, built with {sets}; {'GPUs: ' + ', '.join(facts.gpus) if facts.gpus else 'no GPU here'}",
            )
        )
    return found


def _about_gpus(facts: EngineFacts) -> list[Finding]:
    if facts.gpus:
        return []
    if facts.nvidia and not facts.offloads:
        return [
            Finding(
                "llama.cpp",
                "warning",
                f"an NVIDIA GPU is here ({facts.nvidia[0]}), and llama.cpp was built without any: layers run on the processor",
                rebuild("-DGGML_CUDA=on"),
            )
        ]
    if facts.nvidia:
        return [
            Finding(
                "llama.cpp",
                "warning",
                f"an NVIDIA GPU is here ({facts.nvidia[0]}), and llama.cpp, which was built for GPUs, finds none",
                "Look whether `nvidia-smi` runs for this user, and whether its driver is as new as the CUDA that llama.cpp was built with",
            )
        ]
    if facts.render:
        what = (
            "llama.cpp, which was built for GPUs, finds none" if facts.offloads else "llama.cpp was built without any"
        )
        return [
            Finding(
                "llama.cpp",
                "note",
                f"a GPU may be here ({facts.render[0]}), and {what}",
                rebuild("-DGGML_VULKAN=on") + "; a small integrated one is no faster than the processor",
            )
        ]
    return []


def rebuild(argument: str = "") -> str:
    """Returns: how to compile it anew."""
    arguments = f'CMAKE_ARGS="{argument}" ' if argument else ""
    return f"Compile it here: `{arguments}pip install --force-reinstall --no-cache-dir --no-deps {LLAMA}=={required(LLAMA).removeprefix('==')}`"


def look_at_engine(root: Path = Path("/")) -> EngineFacts:
    """Gather. Blocks for as long as llama.cpp takes to be loaded. Raises: DeadlineExceeded after `TIMEOUT_S`."""
    nvidia = sorted(str(path) for path in (root / "dev").glob("nvidia[0-9]*"))
    render = sorted(str(path) for path in (root / "dev/dri").glob("renderD*"))
    if not nvidia and (tool := shutil.which("nvidia-smi")):
        nvidia = [tool]
    processor = processor_flags(read_text(root / "proc/cpuinfo"))
    try:
        asked = subprocess.run(
            python_module("shardnet.doctor.engine_facts"), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"loading llama.cpp took longer than {TIMEOUT_S:g} s") from None
    if asked.returncode:
        lines = asked.stderr.decode(errors="replace").strip().splitlines()
        return EngineFacts(ended=how_it_ended(asked.returncode), words=lines[-1].strip()[:300] if lines else "")
    told = json.loads(asked.stdout)
    return EngineFacts(
        built=frozenset(told["built"]),
        processor=processor,
        offloads=told["offloads"],
        gpus=tuple(told["gpus"]),
        nvidia=tuple(nvidia),
        render=tuple(render),
        native=told["native"],
        version=installed(LLAMA) or "",
    )


def processor_flags(cpuinfo: str) -> frozenset[str]:
    """Returns: the flags of a processor, as `/proc/cpuinfo` has them; none of one that is no x86."""
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()
