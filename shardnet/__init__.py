"""shardnet: run one large language model on several ordinary machines.

What programs import stands in `__all__` (docs/python-api.md). It is loaded when it is first used, so that importing shardnet stays quick.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = (
    False  # for those who check types it is True; importing `typing` for it would take longer than all else here
)

if TYPE_CHECKING:
    from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
    from shardnet.library.answers import Answer, Piece
    from shardnet.library.devices import assign_shards, detect_devices
    from shardnet.library.models import load_manifest, split_model, verify
    from shardnet.library.runner import ShardRunner
    from shardnet.library.swarm_client import AsyncSwarmClient, SwarmClient

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncSwarmClient",
    "Piece",
    "ShardRunner",
    "ShardedSafeTensors",
    "SwarmClient",
    "__version__",
    "assign_shards",
    "detect_devices",
    "load_manifest",
    "split_model",
    "verify",
]

_HOME = {
    "Answer": "library.answers",
    "AsyncSwarmClient": "library.swarm_client",
    "Piece": "library.answers",
    "ShardRunner": "library.runner",
    "ShardedSafeTensors": "inference.checkpoints.sharded",
    "SwarmClient": "library.swarm_client",
    "assign_shards": "library.devices",
    "detect_devices": "library.devices",
    "load_manifest": "library.models",
    "split_model": "library.models",
    "verify": "library.models",
}


if not TYPE_CHECKING:  # or no misspelt name would be an error

    def __getattr__(name: str) -> object:
        """Source: PEP 562."""
        if name not in _HOME:
            raise AttributeError(f"module 'shardnet' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"shardnet.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
