"""`python hungry_engine.py GGUF`: an engine with a loaded model, in a process that then takes memory until the kernel kills the engine.

Prints as JSON how a load that is too large was refused, and why the engine died.

The process is to be a member of a group with little memory. The engine asks to be the first to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from shardnet.errors import EngineCrashed, NoRoomError
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.protocol import Load
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.messages import ShardOptions

CHUNK = 8 << 20


def load_of(path: str, n_ctx: int) -> Load:
    options = ShardOptions(n_ctx=n_ctx, n_seq=1, n_batch=32)
    return Load(command_id=new_id(), model_id="a" * 64, shard_id=0, path=path, options=options)


async def starve(engine: EngineProcess) -> dict[str, object]:
    """Take memory until the kernel kills the engine. Returns: how it died; nothing if it was back before anybody asked."""
    pid = engine.pid
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")  # noqa: ASYNC240  (a file of the kernel)
    taken: list[bytearray] = []
    while engine.pid == pid:  # a new one has not asked to be the first
        taken.append(bytearray(b"x") * CHUNK)
        try:
            await engine.report()
        except EngineCrashed as crash:
            return {"died": crash.message, "out_of_memory": crash.facts.get("out_of_memory")}
    return {}


async def main(path: str) -> None:
    engine = EngineProcess(InferenceSettings(threads=1))
    await engine.start()
    told: dict[str, object] = {}
    try:
        await engine.load(load_of(path, 64))
        try:
            await engine.load(load_of(path, 1 << 20))
        except NoRoomError as error:
            told["refused"], told["facts"] = error.message, error.facts
        while "died" not in told:
            told |= await starve(engine)
    finally:
        await engine.close()
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
