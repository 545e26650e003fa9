"""What a split costs: peak memory and MB/s beside `cp`; what a scan of 60 shards with large vocabularies costs. One JSON line per figure.

    python -m tests.bench.bench_split [--folder DIR] [--shards 4] [--model FILE]

A model of 3.8 GB is written first unless one is given; 12 GB of disk are needed. Each command runs as a process of its own, `cp` and the split both
until their bytes are on the disk (fsync), with the source in the page cache as far as memory allows. `over_interpreter_mb` is the peak of resident
memory above that of a Python that has imported what the split imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shardnet.inference.gguf.header import read_gguf_header
from shardnet.inference.splitting.manifest_file import scan_cache
from tests.bench.make_synthetic_gguf import LLAMA_2_7B, write_cache, write_model

MB = 1_000_000
IMPORTS = "import shardnet.inference.splitting.cutting, shardnet.cli.split, shardnet.inference.splitting.manifest_file"


def tell(figure: str, **facts: Any) -> None:
    print(
        json.dumps({"figure": figure, **{k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}}),
        flush=True,
    )


def seconds(*command: str | Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def peak_of(statements: str) -> tuple[float, float]:
    """Returns: (seconds, peak resident megabytes) of Python statements in a process of their own."""
    report = "\nfrom pathlib import Path\nprint(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    began = time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", statements + report], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, int(answer.stdout.split()[-1]) / 1024


def bench_split(model: Path, folder: Path, shards: int) -> None:
    size = model.stat().st_size / MB
    _, interpreter_mb = peak_of(IMPORTS)
    for attempt in (1, 2):  # the first one also finds the source in no cache
        copy, out = folder / "copy.gguf", folder / "split"
        cp_s = seconds("cp", model, copy)
        began = time.perf_counter()
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        cp_s += time.perf_counter() - began
        copy.unlink()
        flags = ["split", str(model), "--shards", str(shards), "--out", str(out), "--no-verify"]
        split_s, peak_mb = peak_of(f"from shardnet.cli import app\napp({flags!r}, standalone_mode=False)")
        shutil.rmtree(out)
        tell(
            "split",
            attempt=attempt,
            model_mb=size,
            shards=shards,
            split_s=split_s,
            split_mb_per_s=size / split_s,
            cp_s=cp_s,
            cp_mb_per_s=size / cp_s,
            peak_rss_mb=peak_mb,
            over_interpreter_mb=peak_mb - interpreter_mb,
        )


def bench_scan(folder: Path) -> None:
    cache = write_cache(folder / "cache")
    for attempt in (1, 2):
        began = time.perf_counter()
        scan = scan_cache(cache)
        tell(
            "scan",
            attempt=attempt,
            shards=len(scan.shards),
            refused=len(scan.refused),
            seconds=time.perf_counter() - began,
        )
    began = time.perf_counter()
    for shard in scan.shards:
        read_gguf_header(shard.path)
    tell("headers_read_whole", shards=len(scan.shards), seconds=time.perf_counter() - began, vocabulary=128_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-split-", dir=arguments.folder))
    try:
        bench_scan(folder)
        model = arguments.model
        if model is None:
            began = time.perf_counter()
            model = write_model(folder / "synthetic-7b.gguf", LLAMA_2_7B, "Q4_0", name="synthetic-7b")
            tell("write_synthetic", mb=model.stat().st_size / MB, seconds=time.perf_counter() - began)
        bench_split(model, folder, arguments.shards)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
