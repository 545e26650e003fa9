"""Grammars are looked over before a prompt is computed, in a process of their own (`checker.py`): the event loop never waits for native code,
and what crashes or does not end there is refused, and costs that process only."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shardnet.children import python_module
from shardnet.errors import EngineError, UsageError
from shardnet.log import get

COMMAND: Sequence[str] = python_module("shardnet.coordinator.structure.checker")
START_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 3.0
"""A grammar that takes longer would hold an engine up, too."""
MAX_REMEMBERED = 512
"""Grammars that are known to be good: clients send the same one over and over."""

log = get("structure")


class GrammarChecks:
    """The process, started by the first grammar. One grammar is looked over at a time; the others wait."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._good: OrderedDict[tuple[str, Path], None] = OrderedDict()

    async def check(self, grammar: str, vocabulary: Path, field: str) -> None:
        """Raises: UsageError if engines would not take the grammar; EngineError if no process can be started.

        Args:
            vocabulary: the model's, as a GGUF.
            field: of the request, for errors.
        """
        key = (grammar, vocabulary)
        if key not in self._good:
            async with self._turn:
                error = await self._ask(grammar, vocabulary)
            if error is not None:
                raise UsageError(f"{field}: {error}", param=field)
            while len(self._good) >= MAX_REMEMBERED:
                self._good.popitem(last=False)
        self._good[key] = None
        self._good.move_to_end(key)

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, grammar: str, vocabulary: Path) -> str | None:
        process = self._process or await self._start()
        line = json.dumps({"grammar": grammar, "vocabulary": os.fspath(vocabulary)})
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                answer = await _exchange(process, line)
        except TimeoutError:
            await self.close()
            log.warning("grammar_check_too_long", characters=len(grammar))
            return f"the grammar is not taken: looking it over took longer than {CHECK_TIMEOUT_S:g} s; make it smaller"
        except BaseException:  # the client is gone: the answer to come would be taken for the next one's
            await self.close()
            raise
        if answer is None:
            await self.close()
            log.warning("grammar_check_crashed", characters=len(grammar), exit_code=process.returncode)
            return "the grammar is not taken: the process that looked it over ended"
        error = answer["error"]
        return None if error is None else str(error)

    async def _start(self) -> Process:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
            async with asyncio.timeout(START_TIMEOUT_S):
                greeting = await _exchange(process, None)
        except (OSError, TimeoutError) as error:
            await self.close()
            raise EngineError(f"the process that looks grammars over does not start: {error}") from error
        except BaseException:
            await self.close()
            raise
        if greeting is None:
            await self.close()
            raise EngineError(
                f"the process that looks grammars over ended at its start (exit code {process.returncode})"
            )
        return process


async def _exchange(process: Process, line: str | None) -> dict[str, object] | None:
    """Returns: the process's next answer; None if it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if line is not None:
            process.stdin.write(line.encode() + b"\n")
            await process.stdin.drain()
        answer = await process.stdout.readline()
    except ConnectionError:
        return None
    if not answer.endswith(b"\n"):
        return None
    read: dict[str, object] = json.loads(answer)
    return read
