"""Which packages are installed, and which of them this version of shardnet was tried with."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

LLAMA = "llama-cpp-python"
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*([^;]*)(?:;\s*(.*))?")
"""Source: dependency specifiers (packaging.python.org); what pyproject.toml has of them: names, ranges, a marker."""
BOUND = re.compile(r"(==|>=|<)\s*([0-9][0-9A-Za-z.]*)")


def installed(package: str) -> str | None:
    """Returns: the version of an installed package, None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ranges() -> dict[str, str]:
    """Returns: package -> the versions that shardnet takes, as `<51,>=43.0.0`; without the optional ones."""
    found = {}
    for line in requires("shardnet") or ():
        if (parts := REQUIREMENT.match(line)) and "extra" not in (parts[3] or ""):
            found[parts[1].lower()] = parts[2].strip()
    return found


def required(package: str) -> str:
    """Returns: the versions of a package that shardnet takes; "" if it does not say."""
    return ranges().get(package, "")


def is_within(found: str, wanted: str) -> bool:
    """True if a version is in a range of `==`, `>=` and `<`."""
    return all(_holds(_numbers(found), sign, _numbers(bound)) for sign, bound in BOUND.findall(wanted))


def _holds(found: tuple[int, ...], sign: str, bound: tuple[int, ...]) -> bool:
    length = max(len(found), len(bound))
    found, bound = found + (0,) * (length - len(found)), bound + (0,) * (length - len(bound))
    return found == bound if sign == "==" else found >= bound if sign == ">=" else found < bound


def _numbers(text: str) -> tuple[int, ...]:
    """Returns: (0, 3, 36) of `0.3.36`, and of `0.3.36+cu124`."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, release[0].split("."))) if release else ()
