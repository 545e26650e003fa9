"""Requantise a GGUF with llama.cpp's own quantiser: SmolLM2-135M comes in Q4_1, whose kernels are slow with several rows.

python -m tests.bench.requantise FILE.gguf OUT.gguf [--type Q4_0]
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import llama_cpp

TYPES = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def requantise(source: Path, target: Path, kind: str) -> None:
    """Write `source` in another quantisation. Raises: RuntimeError if llama.cpp cannot."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[kind]
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp could not write {source} as {kind}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", choices=sorted(TYPES), default="Q4_0")
    arguments = parser.parse_args()
    requantise(arguments.source, arguments.target, arguments.type)


if __name__ == "__main__":
    main()
