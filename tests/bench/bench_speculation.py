"""What proposing tokens gains over two nodes: a text that repeats itself, edits of code, and free prose. Prints JSON lines,
and on standard error how far it is.

    python -m tests.bench.bench_speculation [MODEL.gguf] [--net 20ms] [--rounds 5] [--tokens 160] [--texts quotes,edits] [--balance memory]
        [--prefixes]

`code edit` is a file that a small model repeats; `edits` are the five of `tests/support/code_edits.py`, asked for through the chat template,
for a model that can do them (a real coder). Each node has one core and one thread, all else both cores. Each round asks once without and once with
proposals, of the same coordinator; ratios are taken within a round. `--prefixes` leaves the prefix cache on, so that a long prompt is computed once
and not in each round: the speed of the answer, which alone is measured, begins with its first token.

No parity, no number: where an answer with proposals has other tokens than the one without, the bench ends with exit code 4.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from shardnet.bench.netem import NETS, Relays
from shardnet.errors import ParityError
from shardnet.inference.splitting.plan import BALANCES, CutRequest
from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from tests.support.asking import ask
from tests.support.bench_cli import exit_code_of, listed, progress
from tests.support.code_edits import EDITS
from tests.support.http_servers import CORES, both_cores
from tests.support.two_nodes import halve

CODE = """\
def area_of_rectangle(width, height):
    if width < 0 or height < 0:
        raise ValueError("sides must not be negative")
    return width * height


def perimeter_of_rectangle(width, height):
    if width < 0 or height < 0:
        raise ValueError("sides must not be negative")
    return 2 * (width + height)


def is_square(width, height):
    return width == height
"""
STORY = (
    "The lighthouse was built in 1832 by a company of merchants. It stood on a rock that the sea covered at high tide. "
    "Three keepers lived in it, and each had a watch of eight hours. In the winter of 1860 a storm broke the lamp. "
    "The keepers burned their furniture so that ships would see a light. No ship was lost that night. "
    "The merchants sent a new lamp from the city, and it came after nine days. One of the keepers wrote a book about "
    "that winter, and many people read it. Today the tower is a museum, and the book is still sold there."
)
SAMPLED: dict[str, object] = {"temperature": 0.8, "seed": 1}
"""A small model's greedy prose soon repeats itself: free prose has to be drawn."""
TEXTS: dict[str, dict[str, object]] = {
    "quotes": {
        "messages": [
            {
                "role": "user",
                "content": f"Quote every sentence of this text, then say in a few words what it is about.\n\n{STORY}",
            }
        ],
        "temperature": 0,
        "ignore_eos": True,
    },
    "code edit": {
        "prompt": f"```python\n{CODE}```\n\nThe same file once more:\n\n```python\n{CODE[:38]}",
        "temperature": 0,
        "ignore_eos": True,
    },
    "free prose": {"prompt": "The old lighthouse keeper looked out over the sea and thought of", "ignore_eos": True}
    | SAMPLED,
}
EDIT_TEXTS: dict[str, dict[str, object]] = {edit.name: {"messages": edit.messages, "temperature": 0} for edit in EDITS}
CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Round:
    """One text, asked without proposals and with them.

    Attributes:
        tokens: of the answer.
        proposed, accepted: tokens, in the answer with them.
    """

    without_tokens_per_s: float
    tokens_per_s: float
    tokens: int
    proposed: int
    accepted: int

    @property
    def ratio(self) -> float:
        """Returns: how much quicker it was with them."""
        return self.tokens_per_s / self.without_tokens_per_s


class Bench:
    """A swarm that is asked. `keep`: where answers go, to be looked at."""

    def __init__(self, swarm: LocalSwarm, tokens: int, keep: Path | None) -> None:
        self._swarm, self._tokens, self._keep = swarm, tokens, keep

    def round(self, what: str, request: dict[str, object]) -> Round:
        """Ask twice. Raises: ParityError if the answers differ."""
        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        body = {"model": "model", "max_tokens": self._tokens} | request
        plain = ask(self._swarm.api, path, body | {"speculation": False})
        before = self._swarm.get("/status")["requests"]
        found = ask(self._swarm.api, path, body | {"speculation": True})
        after = self._swarm.get("/status")["requests"]
        if found.token_ids != plain.token_ids:
            raise ParityError(f"{what}: {found.token_ids} with proposals, {plain.token_ids} without")
        if self._keep is not None:
            kept = {"prompt": plain.prompt_token_ids, "answer": plain.token_ids, "text": plain.text}
            (self._keep / f"{what}.json").write_text(json.dumps(kept))
        for answer in (plain, found):
            spent = ("queue_us", "compute_us", "engine_us")
            stages = [" + ".join(f"{stage[key] / 1e3:.1f}" for key in spent) for stage in answer.stages]
            progress(
                f"  {answer.tokens_per_s:.1f} tokens/s; a row waited, was computed, was handed over, ms: {'; '.join(stages)}"
            )
        proposed, accepted = (after[key] - before[key] for key in ("tokens_proposed", "tokens_accepted"))
        return Round(plain.tokens_per_s, found.tokens_per_s, len(plain.token_ids), proposed, accepted)


def told(what: str, rounds: Sequence[Round], **of: object) -> None:
    """Print the medians of a text's rounds."""
    ratios = [one.ratio for one in rounds]
    facts = {
        "bench": "speculation",
        **of,
        "text": what,
        "answer_tokens": median(one.tokens for one in rounds),
        "proposed": median(one.proposed for one in rounds),
        "accepted": median(one.accepted for one in rounds),
        "tokens_per_s": round(median(one.tokens_per_s for one in rounds), 1),
        "without_tokens_per_s": round(median(one.without_tokens_per_s for one in rounds), 1),
        "ratio": round(median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "rounds": len(rounds),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(facts), flush=True)


def serve(resources: ExitStack, model: Path, folder: Path, arguments: argparse.Namespace) -> LocalSwarm:
    """Start everything, pinned."""
    halves = halve(model, "model", folder / "cache", CutRequest(n_shards=CORES, balance=arguments.balance))
    swarm = resources.enter_context(LocalSwarm(folder / "swarm"))
    shape = NETS[arguments.net]
    relays = None if shape.is_free else resources.enter_context(Relays(shape))
    halves.serve(swarm, relays, "--n-ctx", str(CONTEXT), pin=True)
    return swarm


def main() -> int:
    """The command line. Returns: the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--net", choices=list(NETS), default="loopback")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    known = [*TEXTS, "edits", *EDIT_TEXTS]
    parser.add_argument("--texts", type=listed(known), default=list(TEXTS), help=", ".join(known))
    parser.add_argument(
        "--balance", choices=BALANCES, default=CutRequest.balance, help="what the model's cut makes even"
    )
    parser.add_argument("--prefixes", action="store_true", help="leave the prefix cache on")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the answers")
    arguments = parser.parse_args()
    if len(both_cores()) < CORES:
        parser.error(f"{CORES} cores are needed")
    prefixes = "true" if arguments.prefixes else "false"
    os.environ |= {"SHARDNET_SPECULATION__ENABLED": "true", "SHARDNET_PREFIXES__ENABLED": prefixes}
    model = arguments.model or find_demo_model()
    chosen = [name for one in arguments.texts for name in (EDIT_TEXTS if one == "edits" else (one,))]
    facts = {"model": model.stem, "net": arguments.net, "balance": arguments.balance}

    def run() -> None:
        with ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
            bench = Bench(serve(resources, model, folder, arguments), arguments.tokens, arguments.keep)
            requests = TEXTS | EDIT_TEXTS
            progress(f"warm-up: {bench.round(chosen[0], requests[chosen[0]])}")
            edits: list[Round] = []
            for what in chosen:
                rounds = []
                for number in range(arguments.rounds):
                    rounds.append(bench.round(what, requests[what]))
                    progress(f"{what} {number + 1}/{arguments.rounds}: {rounds[-1]}")
                told(what, rounds, **facts)
                edits += rounds if what in EDIT_TEXTS else []
            if edits:
                told("all edits", edits, **facts)

    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
