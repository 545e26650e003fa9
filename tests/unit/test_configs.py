"""configs/*.toml list every key of the settings models, with its default. For each daemon that is there."""

from __future__ import annotations

import importlib
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shardnet.settings import Section, load_settings

ROOT = Path(__file__).parents[2]
DAEMONS = {
    "coordinator": "shardnet.coordinator.settings:CoordinatorSettings",
    "node": "shardnet.node.settings:NodeSettings",
}


def settings_of(daemon: str) -> type[Section]:
    module, _, name = DAEMONS[daemon].partition(":")
    kind: type[Section] = getattr(importlib.import_module(module), name)
    return kind


def flat(section: Section, prefix: str = "") -> dict[str, Any]:
    """Every key with its default, `section.key`."""
    found: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Section) else {prefix + name: value}
    return found


def flat_toml(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flat_toml(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def check_descriptions(kind: type[Section], prefix: str = "") -> None:
    for name, field in kind.model_fields.items():
        assert field.description, f"{prefix}{name} has no description"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            check_descriptions(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_file_lists_every_key_with_its_default(daemon: str) -> None:
    file = ROOT / "configs" / f"{daemon}.toml"
    text = file.read_text(encoding="utf-8")
    written, defaults = flat_toml(tomllib.loads(text)), flat(settings_of(daemon)())
    unset = {key for key, value in defaults.items() if value is None}
    assert written.keys() - defaults.keys() == set(), "keys that no setting has"
    assert defaults.keys() - unset - written.keys() == set(), "settings that the file does not list"
    for key in unset - written.keys():
        assert f"# {key.rpartition('.')[2]} =" in text, f"{key} has no default and should stand there as a comment"
    assert load_settings(settings_of(daemon), file=file, environ={}) == settings_of(daemon)()


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_setting_has_a_description(daemon: str) -> None:
    check_descriptions(settings_of(daemon))


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_key_of_the_file_has_a_comment_before_it(daemon: str) -> None:
    lines = (ROOT / "configs" / f"{daemon}.toml").read_text(encoding="utf-8").splitlines()
    for before, line in pairwise(lines):
        if line and not line.startswith(("#", "[")):
            assert before.startswith("#"), f"{line!r} has no comment"
