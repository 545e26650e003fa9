"""Prints the table of docs/families.md: model family x cut -> max |delta| against the unsplit model, or the refusal's text.

    python tests/bench/family_table.py                    every family
    python tests/bench/family_table.py gemma2 gpt-oss     some of them
    python tests/bench/family_table.py --quantisations    one small model in every type that llama.cpp quantises to
    python tests/bench/family_table.py --write            put both tables into docs/families.md

Each model is small and random (tests/support/) and has more than one period of layers; every legal cut is tried at once, then one
in the middle.
Exits 1 if a family that is cut is not exact.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.family_proofs import Proof, in_words, prove_cut, prove_family
from tests.support.quantised_models import QUANTISATIONS, quantise
from tests.support.random_families import RECIPES
from tests.support.random_models import tiny_llama

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
HEADER = "| model | architecture | cuts | max abs. difference | greedy tokens |\n|---|---|---|---|---|"


def row(proof: Proof) -> str:
    """Returns: one line of the table."""
    start = f"| {proof.family} | {proof.architecture} | {in_words(proof.cuts) if proof.cuts else ''} "
    if proof.certificate is None:
        return f"{start}| refused: {proof.refusal} | |"
    return f"{start}| {proof.max_abs_diff:g} | {'equal' if proof.certificate.tokens_equal else 'DIFFERENT'} |"


def family_proofs(family: str) -> list[Proof]:
    """Prove one family, in a process of its own, so that a recipe that needs mending costs one row and no table."""
    with tempfile.TemporaryDirectory(prefix="shardnet-families-") as folder:
        return prove_family(family, Path(folder))


def quantisation_proofs() -> list[Proof]:
    """Prove one random Llama in every type."""
    proofs = []
    with tempfile.TemporaryDirectory(prefix="shardnet-types-") as name:
        folder = Path(name)
        source = tiny_llama(folder / "f32.gguf", n_layers=4, n_embd=256, quantisation="F32", tied=False)
        for quantisation in QUANTISATIONS:
            path = quantise(source, folder / f"{quantisation}.gguf", quantisation)
            cuts = (1, 2, 3)
            proof = prove_cut("llama", path, cuts, folder / "cache")
            proofs.append(Proof(quantisation, "llama", cuts, proof.certificate, proof.refusal, proof.fault))
            path.unlink()
    return proofs


def write_into(document: Path, name: str, table: str) -> None:
    """Replace the table between the two markers of its name."""
    text = document.read_text(encoding="utf-8")
    begin, end = BEGIN.format(name), END.format(name)
    before, rest = text.split(begin)
    document.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def run_one(family: str) -> tuple[str, bool]:
    """Returns: the rows of one family, from a child process, and whether they are good."""
    result = subprocess.run(
        [sys.executable, __file__, "--one", family],
        capture_output=True,
        text=True,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if result.returncode < 0 or not result.stdout:
        words = [line for line in result.stderr.splitlines() if line.strip()]
        return (
            f"| {family} | {RECIPES[family].architecture} | | not built: {words[-1] if words else result.returncode} | |",
            False,
        )
    return result.stdout.rstrip(), result.returncode == 0


def main() -> int:
    """Returns: the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=[])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quantisations", action="store_true", help="only the table of quantisation types")
    parser.add_argument("--write", action="store_true", help="write both tables into docs/families.md")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    options = parser.parse_args()
    if options.one:
        proofs = family_proofs(options.families[0])
        print("\n".join(row(proof) for proof in proofs))
        return 0 if all(proof.is_exact or not proof.cuts for proof in proofs) else 1
    good = True
    if not options.quantisations:
        print(HEADER, flush=True)
        lines = []
        with ThreadPoolExecutor(options.jobs) as pool:
            for text, is_good in pool.map(run_one, options.families or list(RECIPES)):
                print(text, flush=True)
                lines.append(text)
                good = good and is_good
        if options.write and not options.families:
            write_into(DOCUMENT, "families", "\n".join([HEADER, *lines]))
    if options.quantisations or options.write:
        proofs = quantisation_proofs()
        table = "\n".join([HEADER, *map(row, proofs)])
        print(table)
        good = good and all(proof.is_exact for proof in proofs)
        if options.write:
            write_into(DOCUMENT, "quantisations", table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
