"""The daemon's orders to load and unload shards, and the loader's thread behind them. Lives in the engine process only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from shardnet.errors import ShardnetError
from shardnet.inference.engine.protocol import FromEngine, Load, Loaded, Loading, Unload, Unloaded
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.llama.thread_choice import ThreadChoice
from shardnet.inference.worker.budgets import Budgets
from shardnet.inference.worker.chains import Chains
from shardnet.inference.worker.loading import Finished, Loader, Used
from shardnet.inference.worker.shard import Shard
from shardnet.inference.worker.watching import Progress


class ShardOrders:
    """Orders that are being carried out.

    Args:
        chains: where shards come and go.
        chains_change: called with the model before they do.
        tell: sends to the daemon.
        fail: tells the daemon that a command failed.
        wake: called on the loader's thread when `take_loaded` has something to do.
        threads: how many CPU threads shards use.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        chains: Chains,
        *,
        chains_change: Callable[[str], None],
        tell: Callable[[FromEngine], None],
        fail: Callable[[str, ShardnetError], None],
        wake: Callable[[], None],
        threads: ThreadChoice,
    ) -> None:
        self._chains = chains
        self._chains_change = chains_change
        self._tell = tell
        self._fail = fail
        self._wake = wake
        self._loads: deque[Load] = deque()
        self._unloads: list[Unload] = []
        self._loaded: SimpleQueue[Progress | Finished] = SimpleQueue()
        used = lambda: Used(chains.memory_bytes, chains.gpus, chains.mapped_bytes)  # noqa: E731
        self.budgets = Budgets()
        self._loader = Loader(settings, self._on_loader, used, threads, self.budgets)

    def load(self, request: Load) -> None:
        """Have a shard loaded; one that is here as it is asked for is answered at once."""
        shard = self._chains.get(request.model_id, request.shard_id)
        if shard is not None:
            if (shard.request.path, shard.request.options) == (request.path, request.options):
                self._tell(_loaded(request, shard))
                return
            self._remove(request.model_id, request.shard_id)  # its memory may be needed for the new one
        self._loads.append(request)
        self._loader.submit(request)

    def unload(self, request: Unload) -> None:
        """Free a shard; one that is being loaded, once that has ended."""
        if any((r.model_id, r.shard_id) == (request.model_id, request.shard_id) for r in self._loads):
            self._unloads.append(request)  # when it has come
            return
        try:
            self._remove(request.model_id, request.shard_id, keep_sequences=request.keep_sequences)
        except ShardnetError as error:
            self._fail(request.command_id, error)
            return
        self._tell(Unloaded(command_id=request.command_id))

    def _remove(self, model_id: str, shard_id: int, *, keep_sequences: bool = False) -> None:
        self._chains_change(model_id)
        self._chains.remove(model_id, shard_id, keep_sequences=keep_sequences)

    def _on_loader(self, event: Progress | Finished) -> None:
        """On the loader's thread."""
        self._loaded.put(event)
        self._wake()

    def take_loaded(self) -> None:
        """Take in what the loader has done meanwhile."""
        while True:
            try:
                event = self._loaded.get_nowait()
            except Empty:
                return
            request = event.request
            if isinstance(event, Progress):
                self._tell(
                    Loading(
                        command_id=request.command_id,
                        done_bytes=event.done_bytes,
                        total_bytes=event.total_bytes,
                        bytes_per_s=event.bytes_per_s,
                        memory_bytes=event.memory_bytes,
                        cpu_cores=event.cpu_cores,
                    )
                )
                continue
            self._loads.remove(request)
            if isinstance(event.result, ShardnetError):
                self._fail(request.command_id, event.result)
            else:
                shard = event.result
                self._chains_change(request.model_id)
                self._chains.add(shard)
                self._tell(_loaded(request, shard))
            due, self._unloads = self._unloads, []
            for unload in due:
                self.unload(unload)


def _loaded(request: Load, shard: Shard) -> Loaded:
    return Loaded(
        command_id=request.command_id,
        memory_bytes=shard.whole_bytes,
        memory_mode=shard.memory_mode,
        repacked=shard.repacked,
        why=shard.why,
    )
