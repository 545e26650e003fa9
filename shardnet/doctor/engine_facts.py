"""What this installation's llama.cpp says of itself, as JSON: a process of its own, since a library that was built for another processor ends it."""

from __future__ import annotations

import json
import sys
from typing import Any


def engine_facts() -> dict[str, Any]:
    """Returns: `built`, `offloads`, `gpus`, `native`. Loads llama.cpp."""
    import llama_cpp

    from shardnet.inference.llama.capture import NATIVE_CALLBACK
    from shardnet.inference.llama.devices import gpu_devices, instruction_sets
    from shardnet.inference.llama.native_log import listen

    listen()  # what a GPU's driver says is not for the terminal
    return {
        "gpus": [device.name for device in gpu_devices()],
        "built": instruction_sets().split(),
        "offloads": bool(llama_cpp.llama_supports_gpu_offload()),
        "native": NATIVE_CALLBACK is not None,
    }


if __name__ == "__main__":
    json.dump(engine_facts(), sys.stdout)
