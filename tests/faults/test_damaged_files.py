"""Files of a models cache that are not what they should be: damaged, cut off, other than the manifest promises."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from shardnet.errors import GgufError, ManifestError, ShardCorrupt, ShardnetError
from shardnet.inference.gguf.header import read_gguf_header
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.manifest_file import HashCache, check_shard, load_manifest
from shardnet.manifest import Manifest
from tests.support.random_models import tiny_llama

B10_MANIFESTS, B10_CPU_S, B10_BYTES = 500, 0.05, 64 << 20
PIECES = (b"[", b"{", b'"', b"9" * 30, b"-1", b"null", b"1e999", b"../", b"[" * 5000)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Manifest]:
    whole = tiny_llama(tmp_path / "tiny.gguf", n_layers=2)
    return split_model(plan_split(whole, CutRequest(n_shards=1), "tiny"), tmp_path / "cache")


def test_one_flipped_bit_is_found_wherever_it_is(model: tuple[Path, Manifest]) -> None:
    """Twenty places in header and tensors, the last byte among them. The hash of the good file is remembered, and is of no use to a bad one."""
    folder, manifest = model
    path = folder / manifest.content.shards[0].file
    good, first = path.read_bytes(), read_gguf_header(path).tensors[0].offset
    hashes, rng = HashCache(folder), random.Random(4)
    check_shard(path, manifest, 0, hashes)
    inside = [rng.randrange(first) for _ in range(9)] + [rng.randrange(first, len(good)) for _ in range(10)]
    for position in [*inside, len(good) - 1]:
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(ShardCorrupt):
            check_shard(path, manifest, 0, hashes)
    path.write_bytes(good)
    check_shard(path, manifest, 0, hashes)


def odd_files(good: bytes, other: Path) -> dict[str, Callable[[Path], object]]:
    def sparse(path: Path) -> None:
        path.write_bytes(good[: len(good) // 2])
        os.truncate(path, len(good))

    return {
        "truncated": lambda path: path.write_bytes(good[:-7]),
        "sparse": sparse,
        "empty": lambda path: path.write_bytes(b""),
        "longer": lambda path: path.write_bytes(good + b"x"),
        "symlink": lambda path: path.symlink_to(other),
        "pipe": os.mkfifo,
    }


@pytest.mark.parametrize("kind", ["truncated", "sparse", "empty", "longer", "symlink", "pipe"])
def test_an_odd_file_in_place_of_a_shard_is_refused(model: tuple[Path, Manifest], tmp_path: Path, kind: str) -> None:
    """B5. The link leads to the right bytes, and is refused all the same."""
    folder, manifest = model
    path = folder / manifest.content.shards[0].file
    other = tmp_path / "other"
    good = path.read_bytes()
    other.write_bytes(good)
    path.unlink()
    odd_files(good, other)[kind](path)
    with pytest.raises((ShardCorrupt, GgufError)):
        check_shard(path, manifest, 0, HashCache(folder))


def mutated(text: bytes, rng: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 40)]
            case 2:
                data[at:at] = rng.choice(PIECES)
            case _:
                del data[max(1, at) :]
    return bytes(data)


def test_five_hundred_mutated_manifests_crash_nothing_and_are_quick(model: tuple[Path, Manifest]) -> None:
    """B10. Whatever is still read is what was written: the model id is the hash of the content."""
    folder, manifest = model
    path, rng = folder / "manifest.json", random.Random(10)
    text = path.read_bytes()
    refused, slowest = 0, 0.0
    tracemalloc.start()
    for _ in range(B10_MANIFESTS):
        path.write_bytes(mutated(text, rng))
        began = time.thread_time()
        try:
            assert load_manifest(folder).content == manifest.content
        except ManifestError:
            refused += 1
        except ShardnetError as error:
            pytest.fail(f"another error than expected: {error!r}")
        slowest = max(slowest, time.thread_time() - began)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > B10_MANIFESTS * 0.8
    assert slowest < B10_CPU_S
    assert peak < B10_BYTES
