"""What `shardnet status` prints of a coordinator that was put together by hand."""

from __future__ import annotations

from shardnet.cli.status import lines
from shardnet.coordinator.api.views import swarm_json
from shardnet.coordinator.placement.standing import Standing


def status_lines(here: Standing) -> list[str]:
    """What `shardnet status` would print of nodes and models."""
    about = {
        "node_id": "c" * 40,
        "swarm_id": "s" * 40,
        "uptime_s": 1,
        "refused": [],
        "models_cache": "/srv/models",
        "addresses": {"nodes": "a:1", "api": "a:2"},
    }
    counts = dict.fromkeys(
        [
            "running",
            "queued",
            "finished",
            "failed",
            "prompt_tokens",
            "prefix_tokens_reused",
            "prefix_hits",
            "prefix_copies",
            "prefix_waits",
            "sequences_kept",
        ],
        0,
    )
    return lines({"coordinator": about, "requests": counts} | swarm_json(here, 0.0))
