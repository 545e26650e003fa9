"""What proposing tokens gains over two nodes: a text that repeats itself, and free prose. Prints JSON lines.

python -m tests.bench.bench_speculation [MODEL.gguf] [--rounds 5] [--tokens 160]

Each round asks once without and once with proposals, of the same coordinator; ratios are taken within a round. The prefix cache is off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from shardnet.demo.client import ask
from shardnet.demo.model import find_demo_model
from shardnet.demo.processes import LocalSwarm
from tests.two_nodes import halve

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
PROMPTS = {
    "code edit": f"```python\n{CODE}```\n\nThe same file once more:\n\n```python\n{CODE[:60]}",
    "free prose": "The old lighthouse keeper looked out over the sea and thought of",
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    arguments = parser.parse_args()
    os.environ |= {"SHARDNET_SPECULATION__ENABLED": "true", "SHARDNET_PREFIXES__ENABLED": "false"}
    with tempfile.TemporaryDirectory() as folder, LocalSwarm(Path(folder) / "swarm") as swarm:
        halve(arguments.model or find_demo_model(), "model", Path(folder) / "cache").serve(swarm)
        for what, prompt in PROMPTS.items():
            speeds: dict[bool, list[float]] = {False: [], True: []}
            same = []
            body = {"model": "model", "prompt": prompt, "max_tokens": arguments.tokens, "temperature": 0}
            for number in range(arguments.rounds + 1):
                answers = {
                    on: ask(swarm.api, "/v1/completions", body | {"ignore_eos": True, "speculation": on})
                    for on in speeds
                }
                if number:  # the first is a warm-up
                    for on, answer in answers.items():
                        speeds[on].append(answer.decode_tokens_per_s)
                    same.append(answers[False].token_ids == answers[True].token_ids)
            ratios = [with_it / without for without, with_it in zip(speeds[False], speeds[True], strict=True)]
            print(
                json.dumps(
                    {
                        "bench": "speculation",
                        "text": what,
                        "tokens_per_s": round(statistics.median(speeds[True]), 1),
                        "without_tokens_per_s": round(statistics.median(speeds[False]), 1),
                        "ratio": round(statistics.median(ratios), 3),
                        "ratio_min": round(min(ratios), 3),
                        "ratio_max": round(max(ratios), 3),
                        "same_answers": round(statistics.fmean(same), 2),
                        "rounds": arguments.rounds,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
