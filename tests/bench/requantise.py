"""Requantise a GGUF with llama.cpp's own quantiser: SmolLM2-135M comes in Q4_1, whose kernels are slow with several rows.

python -m tests.bench.requantise FILE.gguf OUT.gguf [--type Q4_0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.support.quantised_models import llama_quantise


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", choices=("Q4_0", "Q8_0"), default="Q4_0")
    arguments = parser.parse_args()
    llama_quantise(arguments.source, arguments.target, arguments.type, threads=0)


if __name__ == "__main__":
    main()
