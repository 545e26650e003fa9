"""What proposing tokens gains over two nodes: a text that repeats itself, and free prose. Prints JSON lines.

python -m tests.bench.bench_speculation [MODEL.gguf] [--net 20ms] [--rounds 5] [--tokens 160]

Each round asks once without and once with proposals, of the same coordinator; ratios are taken within a round. The prefix cache is off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from shardnet.bench.netem import NETS, Relays
from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from tests.support.asking import ask
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
    },
    "code edit": {
        "prompt": f"```python\n{CODE}```\n\nThe same file once more:\n\n```python\n{CODE[:38]}",
        "temperature": 0,
    },
    "free prose": {"prompt": "The old lighthouse keeper looked out over the sea and thought of"} | SAMPLED,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--net", choices=list(NETS), default="loopback")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    arguments = parser.parse_args()
    os.environ |= {"SHARDNET_SPECULATION__ENABLED": "true", "SHARDNET_PREFIXES__ENABLED": "false"}
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        swarm = resources.enter_context(LocalSwarm(folder / "swarm"))
        shape = NETS[arguments.net]
        relays = None if shape.is_free else resources.enter_context(Relays(shape))
        model = arguments.model or find_demo_model()
        halve(model, "model", folder / "cache").serve(swarm, relays)
        for what, request in TEXTS.items():
            speeds: dict[bool, list[float]] = {False: [], True: []}
            same = []
            path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
            body = {"model": "model", "max_tokens": arguments.tokens} | request
            for number in range(arguments.rounds + 1):
                answers = {on: ask(swarm.api, path, body | {"ignore_eos": True, "speculation": on}) for on in speeds}
                if number:  # the first is a warm-up
                    for on, answer in answers.items():
                        speeds[on].append(answer.tokens_per_s)
                    same.append(answers[False].token_ids == answers[True].token_ids)
            ratios = [with_it / without for without, with_it in zip(speeds[False], speeds[True], strict=True)]
            print(
                json.dumps(
                    {
                        "bench": "speculation",
                        "model": model.stem,
                        "net": arguments.net,
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
