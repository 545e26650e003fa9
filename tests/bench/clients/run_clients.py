"""The clients that people use, each in the version that is pinned beside this file, against a swarm of a coordinator and two nodes with a real model.

    python tests/bench/clients/run_clients.py MODEL.gguf [--folder FOLDER] [--only openai_calls] [--call TEXT]

MODEL is a small instruction model, such as Qwen2.5-Coder-0.5B-Instruct in Q4_K_M. FOLDER keeps the clients' environments (Python and, where `npm` is,
Node) and the shards for another run; without it a temporary one is made. Prints a JSON line for each call: the client, the call, whether what came is
what the documents of this repository promise (`well`), and what was seen. Ends with 1 if anything was not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shardnet.local.processes import LocalSwarm

HERE = Path(__file__).resolve().parent
NAME = "coder"
SCRIPTS = (
    "openai_calls",
    "openai_tools",
    "openai_structures",
    "openai_wire",
    "responses_calls",
    "anthropic_calls",
    "litellm_calls",
    "langchain_calls",
    "pydantic_ai_calls",
)
NODE_SCRIPT = "openai_node"
TIMEOUT_S = 3600


def python_of(folder: Path) -> Path:
    """Returns: the interpreter of the Python clients' environment, made if it is not there as pinned."""
    home, pinned = folder / "python", (HERE / "requirements.txt").read_text()
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if not stamp.exists() or stamp.read_text() != pinned:
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(pinned)
    return python


def node_of(folder: Path) -> Path | None:
    """Returns: the folder with the Node client and its script; None where there is no npm."""
    if shutil.which("npm") is None:
        return None
    home, pinned = folder / "node", (HERE / "package.json").read_text()
    home.mkdir(exist_ok=True)
    package = home / "package.json"
    if not (home / "node_modules").exists() or package.read_text() != pinned:
        package.write_text(pinned)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=home, check=True)
    shutil.copy(HERE / f"{NODE_SCRIPT}.mjs", home)
    return home


def shards_of(model: Path, folder: Path) -> Path:
    """Returns: a models cache with the model in two shards, cut if it is not there."""
    cache = folder / "models_cache"
    if not list(cache.glob(f"shards/{NAME}-*/manifest.json")):
        split = ["split", str(model), "--shards", "2", "--name", NAME, "--out", str(cache), "--verify", "quick"]
        subprocess.run([sys.executable, "-m", "shardnet", *split], check=True)
    return cache


def run(model: Path, folder: Path, only: str, call: str) -> int:
    """Make what is missing, start the swarm, and run every script. Returns: 1 if one of them saw a fault."""
    python, node, cache = python_of(folder), node_of(folder), shards_of(model, folder)
    commands = {name: ([str(python), str(HERE / f"{name}.py")], HERE) for name in SCRIPTS}
    if node is not None:
        commands[NODE_SCRIPT] = (["node", f"{NODE_SCRIPT}.mjs"], node)
    code = 0
    with tempfile.TemporaryDirectory() as home, LocalSwarm(Path(home)) as swarm:
        swarm.start_coordinator("--models-cache", str(cache), "--stages", "2")
        for number in range(2):
            swarm.start_node(f"node-{number}", cache, "--shard", str(number), "--threads", "1")
        swarm.wait_ready(120)
        environment = os.environ | {
            "SHARDNET_CLIENTS_BASE": f"{swarm.api}/v1",
            "SHARDNET_CLIENTS_MODEL": NAME,
            "PYTHONPATH": str(HERE.parents[2]),
        }
        for name, (command, where) in commands.items():
            if only in name:
                done = subprocess.run([*command, call], cwd=where, env=environment, timeout=TIMEOUT_S, check=False)
                code |= int(done.returncode != 0)
    return code


def main() -> int:
    """Returns: 1 if anything was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, help="kept for another run")
    parser.add_argument("--only", default="", help="scripts whose name holds this")
    parser.add_argument("--call", default="", help="calls whose name holds this; several with | between them")
    asked = parser.parse_args()
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        return run(asked.model, asked.folder.resolve(), asked.only, asked.call)
    with tempfile.TemporaryDirectory() as folder:
        return run(asked.model, Path(folder), asked.only, asked.call)


if __name__ == "__main__":
    sys.exit(main())
