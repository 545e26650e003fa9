"""A trace of one request through two real nodes: every step is there, in order, within what the client saw."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.trace_file import check_nested, check_stages, named, processes, spans
from tests.support.two_nodes import complete, tiny_halves

pytestmark = pytest.mark.integration
TOKENS = 12


def test_the_spans_of_a_real_request_nest_and_lie_within_what_the_client_saw(tmp_path: Path) -> None:
    with LocalSwarm(tmp_path / "swarm") as swarm:
        tiny_halves(tmp_path).serve(swarm)
        body = {
            "model": "tiny",
            "prompt": list(range(20, 60)),
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        asked_unix_s, began_s = time.time(), time.perf_counter()
        told = httpx.post(
            f"{swarm.api}/v1/completions", json=body, headers={"X-Shardnet-Trace": "1"}, timeout=60, trust_env=False
        )
        seen_us = 1e6 * (time.perf_counter() - began_s)
        assert told.status_code == httpx.codes.OK
        trace = swarm.get(f"/traces/{told.headers['x-shardnet-trace']}")
        found = spans(trace)
        check_nested(found)
        check_stages(trace, 2)
        (whole,) = named(found, "request")
        assert whole.begin_us == 0
        assert 0 < whole.end_us <= seen_us
        assert asked_unix_s <= trace["otherData"]["started_at_unix_s"] + 0.001
        assert (whole.args["tokens"], whole.args["outcome"]) == (TOKENS, "length")
        assert sorted({name.partition(",")[0] for name in processes(trace).values() if name.startswith("stage")}) == [
            "stage 0: node-0",
            "stage 1: node-1",
        ]
        phases = [one for one in found if one.track == whole.track]
        order = ["request", "tokenize", "wait for a place", "try 1", "prompt", "decode"]
        assert [one.name for one in phases] == order
        assert all(one.end_us <= other.begin_us + 0.01 for one, other in pairwise(phases[1:4]))
        answered = [one for one in found if one.args.get("answered") and one.name.startswith("decode")]
        assert len(answered) == TOKENS - 1  # the first token comes of the prompt's last step
        attempt, decode = phases[3], phases[5]
        assert all(attempt.holds(one) for one in found if "step" in one.args)
        assert all(decode.holds(one) for one in answered)


def test_generate_writes_a_trace_that_a_viewer_opens(tmp_path: Path) -> None:
    with LocalSwarm(tmp_path / "swarm") as swarm:
        tiny_halves(tmp_path).serve(swarm)
        complete(swarm, "warm")
        command = [
            sys.executable,
            "-m",
            "shardnet",
            "generate",
            "hello",
            "--raw",
            "--max-tokens",
            "4",
            "--api",
            swarm.api,
        ]
        file = tmp_path / "trace.json"
        told = subprocess.run([*command, "--trace", str(file)], capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stderr
        trace = json.loads(file.read_text(encoding="utf-8"))
        check_nested(spans(trace))
        assert named(spans(trace), "request")[0].args["outcome"] in ("length", "stop")
        refused = subprocess.run([*command, "--trace", str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert "cannot write" in refused.stderr
