"""The lock files say exactly what pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = {
    "requirements.lock": PROJECT["dependencies"],
    "requirements-dev.lock": [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]],
}
PIN = re.compile(
    r"^([a-z0-9-]+)==([^ ;]+)(?: ; [^\\]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def pins_of(lock: str) -> dict[str, set[str]]:
    """Returns: name -> versions, one for each marker."""
    pins: dict[str, set[str]] = {}
    for name, version, _hashes in PIN.findall((ROOT / lock).read_text(encoding="utf-8")):
        pins.setdefault(name, set()).add(version)
    return pins


@pytest.mark.parametrize("lock", WANTED)
def test_a_lock_pins_every_dependency_within_its_range(lock: str) -> None:
    pins = pins_of(lock)
    for requirement in map(Requirement, WANTED[lock]):
        versions = pins.get(requirement.name.lower(), set())
        assert versions, f"{lock} lacks {requirement.name}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: run `make lock`"


@pytest.mark.parametrize("lock", WANTED)
def test_every_line_of_a_lock_is_a_pin_with_its_hashes_or_says_who_wants_it(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert [line for line in PIN.sub("", text).splitlines() if not line.lstrip().startswith("#")] == []


def test_what_developers_install_holds_exactly_what_the_daemons_do() -> None:
    developers = pins_of("requirements-dev.lock")
    assert {name: developers.get(name) for name in pins_of("requirements.lock")} == pins_of("requirements.lock")


def test_a_dependency_is_a_range_with_two_ends_but_for_llama_cpp() -> None:
    operators = {
        requirement.name: sorted(part.operator for part in requirement.specifier)
        for requirement in map(Requirement, PROJECT["dependencies"])
    }
    assert operators.pop("llama-cpp-python") == ["=="]
    assert set(map(tuple, operators.values())) == {("<", ">=")}
