"""Splitting a random model of a family and proving the shards: what the tests and the table in docs/families.md share."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardnet.errors import ShardnetError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.proof.verify import fault_of, verify_split
from shardnet.inference.splitting import families
from shardnet.inference.splitting.cuts import describe_points
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.families import CutRules
from shardnet.manifest import ParityCertificate
from tests.support.random_families import RECIPES
from tests.support.random_models import build_random_model

PROMPT_LENGTHS = (5, 97)
"""Tokens: a short one, and one longer than every sliding window of the random models."""
DECODE_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of one cut of one model: a certificate, or the refusal's text."""

    family: str
    architecture: str
    cuts: tuple[int, ...]
    certificate: ParityCertificate | None = None
    refusal: str = ""
    fault: str = ""

    @property
    def is_exact(self) -> bool:
        """True if the shards gave the unsplit model's numbers to the last bit."""
        return self.certificate is not None and self.certificate.is_exact

    @property
    def max_abs_diff(self) -> float:
        """Returns: the largest difference at any boundary or logit."""
        if self.certificate is None:
            return float("nan")
        return max(self.certificate.max_abs_logit_diff, *(b.max_abs_diff for b in self.certificate.boundaries), 0.0)


def some_prompts(seed: int = 3) -> list[list[int]]:
    """Returns: random token ids that every random model has."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, length).tolist() for length in PROMPT_LENGTHS]


def cuts_to_try(rules: CutRules) -> list[tuple[int, ...]]:
    """Returns: every legal cut at once (a dozen spread over the model if there are more), and one cut in the middle."""
    legal = rules.legal_cuts
    every: list[int] = []
    for cut in legal[:: -(-len(legal) // 12)]:
        if cut - (every[-1] if every else 0) not in rules.forbidden_lengths:
            every.append(cut)
    middle = (legal[len(legal) // 2],)
    return [tuple(every)] if tuple(every) == middle else [tuple(every), middle]


def prove_cut(family: str, path: Path, cuts: tuple[int, ...], cache: Path) -> Proof:
    """Split a model at `cuts` and run the shards against it."""
    architecture = RECIPES[family].architecture
    try:
        plan = plan_split(path, CutRequest(cuts=cuts), family.replace("_", "-"))
        folder, manifest = split_model(plan, cache)
        certificate = verify_split(folder, path, prompts=some_prompts(), decode_tokens=DECODE_TOKENS, threads=1)
    except ShardnetError as error:
        return Proof(family, architecture, cuts, refusal=str(error))
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return Proof(family, architecture, cuts, certificate, fault=fault_of(manifest.content, certificate))


def prove_family(family: str, folder: Path, quantisation: str = "F32") -> list[Proof]:
    """Build a random model of a family and prove it at several cuts; one refusal if it cannot be cut."""
    architecture = RECIPES[family].architecture
    path = folder / f"{family}.gguf"
    try:
        build_random_model(path, family, quantisation=quantisation)
        rules = families.rules_for(read_model(path))
    except ShardnetError as error:
        return [Proof(family, architecture, (), refusal=str(error))]
    if not rules.legal_cuts:
        return [Proof(family, architecture, (), refusal=rules.reason)]
    return [prove_cut(family, path, cuts, folder / "cache") for cuts in cuts_to_try(rules)]


def in_words(cuts: Sequence[int]) -> str:
    """Returns: `1-5` for the cuts 1, 2, 3, 4, 5."""
    return describe_points(tuple(cuts))
