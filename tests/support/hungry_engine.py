"""`python hungry_engine.py GGUF`: an engine with a loaded model, in a group whose memory is then taken until the kernel kills the engine.

Prints as JSON how a load that is too large was refused, and why the engine died.

The process is to be a member of a group with little memory. Every engine asks to be the first to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

from shardnet.errors import EngineCrashed, NoRoomError
from shardnet.ids import new_id
from shardnet.inference.engine import spawning
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.protocol import Load
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.messages import ShardOptions

HOG = """
open("/proc/self/oom_score_adj", "w").write("500")
taken = []
while True:
    taken.append(bytearray(b"x") * (1 << 20))
"""
"""The second to be killed: the kernel may look for one again before the memory of the first is free."""


def load_of(path: str, n_ctx: int) -> Load:
    options = ShardOptions(n_ctx=n_ctx, n_seq=1, n_batch=32)
    return Load(command_id=new_id(), model_id="a" * 64, shard_id=0, path=path, options=options)


async def starve(engine: EngineProcess) -> dict[str, object]:
    """Have somebody take memory until the kernel kills the engine. Returns: how it died; nothing if it was back before anybody asked."""
    pid = engine.pid
    hog = await asyncio.create_subprocess_exec(sys.executable, "-c", HOG)
    try:
        while engine.pid == pid:
            await engine.report()
    except EngineCrashed as crash:
        return {"died": crash.message, "out_of_memory": crash.facts.get("out_of_memory")}
    finally:
        with suppress(ProcessLookupError):
            hog.kill()
        await hog.wait()
    return {}


async def main(path: str) -> None:
    spawning.COMMAND = ("sh", "-c", 'echo 1000 > /proc/self/oom_score_adj; exec "$@"', "sh", *spawning.COMMAND)
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
