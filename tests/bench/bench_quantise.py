"""A BF16 checkpoint in many files, split to q4_k_m: peak memory, and MB/s beside `cp` and beside llama.cpp's own quantiser. One JSON line a figure.

    python -m tests.bench.bench_quantise [--gigabytes 1] [--turns 3] [--kind q4_k_m] [--folder DIR]

A random Llama is written first, and the same as one GGUF, for llama.cpp takes nothing else; both together with one result need 2.4 times the size on
disk. Then each runs in turn, in a process of its own, until its bytes are on the disk (fsync): `cp` file by file; `llama_model_quantize` of the
GGUF, with as many threads as there are usable cores; `shardnet split --quantize --no-verify` of the checkpoint, which also converts, hashes twice
and writes shards. MB/s count the bytes of the source. `cpu_s` is what user and system spent, all threads together: where other programs compete
for the cores it says more than the clock.

Memory: `anonymous_mb` is the peak of RssAnon + RssShmem, read 50 times a second from /proc: heap, numpy, and what native libraries allocate, without
file pages that the kernel can drop. `peak_rss_mb` is the kernel's own VmHWM, with those pages.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from shardnet.inference.opening import open_model
from shardnet.inference.quantising.model import usable_cores
from shardnet.inference.splitting.whole import whole_file
from tests.support.whole_checkpoints import Shapes, byte_level_tokenizer, family_config, family_shapes

MB = 1_000_000
FILE_BYTES = 500 * MB
WIDTH, FF, N_HEADS, N_KV_HEADS, N_VOCAB = 2048, 8192, 32, 8, 32_000
POOL = 1 << 24
POLL_S = 0.02

LLAMA = """
import os, sys
from pathlib import Path
from tests.support.quantised_models import llama_quantise
target = Path(sys.argv[2])
llama_quantise(Path(sys.argv[1]), target, sys.argv[3].upper(), threads=int(sys.argv[4]))
os.fsync(os.open(target, os.O_RDONLY))
"""
CP = """
import os, shutil, subprocess, sys
for source in sys.argv[2:]:
    subprocess.run(["cp", source, sys.argv[1]], check=True)
    os.fsync(os.open(sys.argv[1], os.O_RDONLY))
    os.unlink(sys.argv[1])
"""


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    cpu_s: float
    anonymous_mb: float
    peak_rss_mb: float


def tell(figure: str, **facts: object) -> None:
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({"figure": figure} | rounded), flush=True)


def watch(*command: str | Path) -> Run:
    """Run a command to its end. Raises: CalledProcessError."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    anonymous = resident = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except OSError:
                break
            if "RssAnon" in facts:
                anonymous = max(anonymous, sum(int(facts[key].split()[0]) for key in ("RssAnon", "RssShmem")))
                resident = max(resident, int(facts["VmHWM"].split()[0]))
            time.sleep(POLL_S)
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, anonymous / 1024, resident / 1024)


def write_checkpoint(folder: Path, nbytes: int) -> Path:
    """Write a Llama of about so many bytes. Returns: `folder`."""
    folder.mkdir()
    sizes = {"hidden_size": WIDTH, "intermediate_size": FF, "num_attention_heads": N_HEADS, "vocab_size": N_VOCAB}
    config = family_config("llama", **sizes, num_key_value_heads=N_KV_HEADS, num_hidden_layers=1, dtype="bfloat16")
    one = {name: 2 * prod(shape) for name, shape in family_shapes("llama", config).items()}
    layer = sum(size for name, size in one.items() if ".layers." in name)
    config["num_hidden_layers"] = max(1, round((nbytes - sum(one.values()) + layer) / layer))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer()))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    groups: list[Shapes] = [{}]
    filled = 0
    for name, shape in family_shapes("llama", config).items():
        if filled and filled + 2 * prod(shape) > FILE_BYTES:
            groups.append({})
            filled = 0
        groups[-1][name] = shape
        filled += 2 * prod(shape)
    generator = np.random.default_rng(1)
    pool = (0.02 * generator.standard_normal(POOL, np.float32)).astype(ml_dtypes.bfloat16)
    places: dict[str, str] = {}
    for number, shapes in enumerate(groups):
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        places |= dict.fromkeys(shapes, file)
        write_safetensors(folder / file, shapes, pool, generator)
    total = sum(2 * prod(shape) for shapes in groups for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_safetensors(path: Path, shapes: Shapes, pool: np.ndarray, generator: np.random.Generator) -> None:
    """Write BF16 tensors of values out of a pool, from another place of it for each piece."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = prod(shape)
            while left:
                start = int(generator.integers(POOL // 2))
                piece = pool[start : start + min(left, POOL // 2)]
                file.write(piece.tobytes())
                left -= piece.size


def bench(folder: Path, nbytes: int, turns: int, kind: str) -> None:
    threads = usable_cores()
    checkpoint = write_checkpoint(folder / "checkpoint", nbytes)
    files = sorted(checkpoint.glob("*.safetensors"))
    source_mb = sum(file.stat().st_size for file in files) / MB
    with whole_file(open_model(checkpoint), folder) as whole:
        imports = "import shardnet.cli.split, shardnet.inference.conversion.convert, llama_cpp, shardnet.preparing"
        for turn in range(1, turns + 1):
            runs = {
                "interpreter": watch(sys.executable, "-c", imports),
                "cp": watch(sys.executable, "-c", CP, folder / "copy", *files),
                "llama_cpp": watch(sys.executable, "-c", LLAMA, whole, folder / "theirs.gguf", kind, str(threads)),
            }
            (folder / "theirs.gguf").unlink()
            split = ["split", str(checkpoint), "--quantize", kind, "--out", str(folder / "out"), "--no-verify"]
            runs["shardnet"] = watch(sys.executable, "-m", "shardnet", *split)
            shutil.rmtree(folder / "out")
            for name, run in runs.items():
                rate = {} if name == "interpreter" else {"mb_per_s": source_mb / run.seconds}
                tell(
                    name, turn=turn, source_mb=source_mb, threads=threads, load=os.getloadavg()[0], **rate, **vars(run)
                )
            ours, theirs = runs["shardnet"], runs["llama_cpp"]
            tell(
                "of_llama_cpp",
                turn=turn,
                kind=kind,
                by_the_clock=theirs.seconds / ours.seconds,
                by_cpu=theirs.cpu_s / ours.cpu_s,
                of_cp=runs["cp"].seconds / ours.seconds,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--kind", default="q4_k_m")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-quantise-", dir=arguments.folder))
    try:
        bench(folder, round(arguments.gigabytes * 1000 * MB), arguments.turns, arguments.kind)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
