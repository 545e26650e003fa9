"""What is looked at: this machine as the settings of its daemons describe it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from shardnet.configuration.daemons import Daemon, daemon_of, read_daemon
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.node.settings import NodeSettings
from shardnet.settings import whole
from shardnet.swarm.home import Home


@dataclass(frozen=True, slots=True)
class Subject:
    """One machine.

    Attributes:
        node, coordinator: settings that its daemons would have; `of_node`, `of_coordinator`: its user gave a file of these.
        api: where the coordinator's HTTP API is to be; None: where this machine's own says.
    """

    home: Home
    node: NodeSettings
    coordinator: CoordinatorSettings
    of_node: bool = False
    of_coordinator: bool = False
    api: str | None = None

    @property
    def caches(self) -> list[Path]:
        """Returns: the models caches that daemons of this machine use."""
        return list(dict.fromkeys((self.node.node.models_cache, self.coordinator.models.cache)))


def subject_of(config: Path | None, models_cache: Path | None, api: str | None) -> Subject:
    """Read the settings, the environment's among them.

    Args:
        config: of a node or of a coordinator: what stands in it says which.
    Raises: SettingsError for a file that cannot be used.
    """
    daemon = _daemon_of(config) if config is not None else None
    node = read_daemon("node", file=config if daemon == "node" else None, flags={"node.models_cache": models_cache})
    coordinator = read_daemon(
        "coordinator", file=config if daemon == "coordinator" else None, flags={"models.cache": models_cache}
    )
    return Subject(
        Home(),
        whole(node),
        whole(coordinator),
        of_node=daemon == "node",
        of_coordinator=daemon == "coordinator",
        api=api or os.environ.get("SHARDNET_API"),
    )


def _daemon_of(config: Path) -> Daemon:
    """Returns: whose settings a file holds. What is wrong with it is said when it is read."""
    try:
        return daemon_of(tomllib.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return "node"
