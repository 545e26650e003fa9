"""What is looked at: this machine as the settings of its daemons describe it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.node.settings import NodeSettings
from shardnet.settings import load_settings
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
        config: of a node or of a coordinator; its sections say which.
    Raises: SettingsError for a file that cannot be used.
    """
    of_coordinator = config is not None and _is_of_coordinator(config)
    of_node = config is not None and not of_coordinator
    return Subject(
        Home(),
        load_settings(NodeSettings, file=config if of_node else None, flags={"node.models_cache": models_cache}),
        load_settings(
            CoordinatorSettings, file=config if of_coordinator else None, flags={"models.cache": models_cache}
        ),
        of_node=of_node,
        of_coordinator=of_coordinator,
        api=api or os.environ.get("SHARDNET_API"),
    )


def _is_of_coordinator(config: Path) -> bool:
    """True if a file has sections that only a coordinator's has. What is wrong with it is said when it is read."""
    try:
        sections = tomllib.loads(config.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError):
        return False
    return not sections <= NodeSettings.model_fields.keys() and bool(sections & CoordinatorSettings.model_fields.keys())
