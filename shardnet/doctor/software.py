"""Packages: are those installed that this version of shardnet was tried with?"""

from __future__ import annotations

from shardnet import __version__
from shardnet.doctor.findings import Finding
from shardnet.packages import LLAMA, installed, is_within, ranges


def package_findings(found: dict[str, str | None], wanted: dict[str, str]) -> list[Finding]:
    """Decide about packages.

    Args:
        found: package -> its version; None if it is not installed.
        wanted: package -> the range that shardnet takes.
    """
    told = []
    for name, bounds in sorted(wanted.items()):
        version = found.get(name)
        remedy = f"Run `pip install '{name}{bounds}'`"
        if version is None:
            told.append(Finding("packages", "fault", f"{name} is not installed", remedy))
        elif not is_within(version, bounds):
            why = ": other arithmetic and other structures" if name == LLAMA else ""
            told.append(
                Finding(
                    "packages",
                    "fault" if name == LLAMA else "warning",
                    f"{name} {version} is installed, and shardnet takes {bounds}{why}",
                    remedy,
                )
            )
    if not told:
        told.append(
            Finding(
                "packages",
                "ok",
                f"shardnet {__version__}; all {len(wanted)} packages are of the versions that it takes",
            )
        )
    return told


def look_at_packages() -> list[Finding]:
    """Gather, and decide."""
    wanted = ranges()
    return package_findings({name: installed(name) for name in wanted}, wanted)
