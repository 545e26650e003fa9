"""Loading shards on a thread of its own, so that running sequences go on meanwhile. llama.cpp's loader releases the interpreter's lock."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from shardnet.errors import EngineError, GgufError, NoRoomError, ShardnetError
from shardnet.inference.engine.device_map import DevicePlan, Space, plan_devices
from shardnet.inference.engine.huge_pages import gets_huge_pages
from shardnet.inference.engine.memory import need_of, no_room
from shardnet.inference.engine.protocol import Load
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.shard_cost import cost_of_header
from shardnet.inference.gguf.header import GgufHeader, read_gguf_header
from shardnet.inference.llama.capture import LayerWatch
from shardnet.inference.llama.devices import gpu_devices, main_memory
from shardnet.inference.llama.experts import LayerExperts
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.placing import PLAIN, Placing
from shardnet.inference.llama.read_ahead import ReadAhead
from shardnet.inference.llama.stages import Stage, experts_of, stages_of
from shardnet.inference.llama.thread_choice import ThreadChoice
from shardnet.inference.worker.budgets import Budgets
from shardnet.inference.worker.memory_mode import Asked, Chosen, Free, choose, fits_twice
from shardnet.inference.worker.shard import Shard
from shardnet.inference.worker.watching import LoadWatch, Progress

PROCESS_BYTES = 32 << 20
"""What llama.cpp takes beside weights, KV cache and compute buffers. Measured: 16 MB with a vocabulary of 49,000 tokens, 32 MB with 152,000."""
WANT_OF_MEMORY = (
    "insufficient memory",
    "allocate memory",
    "unable to allocate",
    "failed to allocate",
    "not enough memory",
)
"""How llama.cpp and the operating system say it."""
EMBEDDINGS = r"^token_embd\.weight$"
IN_HUGE_PAGES = "its weights are copied into huge pages"


@dataclass(frozen=True, slots=True)
class Finished:
    """A load has ended: `result` is the shard, or why there is none."""

    request: Load
    result: Shard | ShardnetError


class Used(NamedTuple):
    """Bytes of the shards in memory; of these, on each GPU, and weights that are read from mapped files."""

    memory_bytes: int
    gpus: Mapping[str, int]
    mapped_bytes: int


class Loader:
    """Loads one shard after another.

    Args:
        settings: what the engine may use.
        report: called on the loader's thread with `Progress` and `Finished`.
        used_bytes: tells what the shards in memory take.
        threads: how many CPU threads shards use.
        budgets: the memory of streamed shards; not in `used_bytes`.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        report: Callable[[Progress | Finished], None],
        used_bytes: Callable[[], Used],
        threads: ThreadChoice,
        budgets: Budgets,
    ) -> None:
        self._budgets = budgets
        self._settings = settings
        self._report = report
        self._used_bytes = used_bytes
        self._threads = threads
        self._waiting: SimpleQueue[Load] = SimpleQueue()
        threading.Thread(target=self._run, name="loader", daemon=True).start()

    def submit(self, request: Load) -> None:
        """Load this one when those before it are done."""
        self._waiting.put(request)

    def _run(self) -> None:
        while True:
            request = self._waiting.get()
            try:
                result: Shard | ShardnetError = self._load(request)
            except ShardnetError as error:
                result = error
            except (OSError, MemoryError) as error:
                result = EngineError(f"cannot load {request.path}: {error or type(error).__name__}")
            self._report(Finished(request, result))

    def _load(self, request: Load) -> Shard:
        path, options, settings = Path(request.path), request.options, self._settings
        header = read_gguf_header(path)
        cost, has_head = cost_of_header(header), _has_head(path, header)
        used = self._used_bytes()
        gpus = [Space(gpu.name, gpu.free_bytes, used.gpus.get(gpu.name, 0)) for gpu in gpu_devices()]
        plan, need = plan_devices(cost, options, gpus, settings.wish), need_of(cost, options)
        what = f"shard {request.shard_id}"
        stages = stages_of(header, has_head=has_head)
        experts = experts_of(header)
        sizes = [sum(extent.nbytes for extent in stage) for stage in stages]
        streamed_bytes = self._budgets.used_bytes
        used_bytes = used.memory_bytes + streamed_bytes - sum(used.gpus.values())
        limit_bytes, room = settings.memory_limit_bytes, main_memory(used.mapped_bytes + streamed_bytes)
        asked = Asked(what, need, plan.spared_bytes, sizes, PROCESS_BYTES, options.repack, bool(experts))
        free = Free(room, used_bytes, limit_bytes, self._budgets.shared())
        chosen = choose(settings.memory_mode, asked, free)
        copies = settings.huge_pages and not plan.n_gpu_layers and fits_twice(asked, chosen, free) and gets_huge_pages()
        try:
            with LoadWatch(request, need.weights, self._report) as watch:
                if chosen.mode == "streamed":
                    return self._stream_in(request, chosen, stages, experts, has_head, watch)
                return self._take_in(request, plan, chosen, has_head, watch, copies=copies)
        except (ShardnetError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(word in error.message for word in WANT_OF_MEMORY):
                found = no_room(what, chosen.needed, room, used_bytes=used_bytes, limit_bytes=limit_bytes)
                raise NoRoomError(f"{found.message}; llama.cpp got no more ({error})", **found.facts) from None
            raise

    def _take_in(
        self,
        request: Load,
        plan: DevicePlan,
        chosen: Chosen,
        has_head: bool,
        watch: LoadWatch,
        *,
        copies: bool,
    ) -> Shard:
        maps = self._settings.use_mmap and not copies
        # Without a head of its own a shard's embeddings would be taken for one, too, and be laid out anew beside their copy for a product never made.
        is_once = not (maps or has_head or plan.n_gpu_layers)
        overrides = [(EMBEDDINGS, PLAIN)] if is_once else plan.overrides
        placing = Placing(plan.n_gpu_layers, plan.gpus, plan.tensor_split, overrides)
        model = LlamaModel(
            Path(request.path),
            placing=placing,
            use_mmap=maps,
            repack=chosen.repack,
            on_progress=watch.handled,
        )
        try:
            context = self._context(model, request, has_head)
        except BaseException:
            model.close()
            raise
        buffers = Counter(model.buffers) + Counter(context.buffers)
        # Weights that are laid out anew are not read from the mapped file any more.
        mapped, repacked = (
            sum(size for name, size in buffers.items() if kind in name) for kind in ("_Mapped", "_REPACK")
        )
        if not maps:
            mapped = 0  # that is the name of plain memory, too
        return Shard(
            request=request,
            model=model,
            context=context,
            has_head=has_head,
            memory_bytes=buffers.total() - min(mapped, repacked),
            gpus=_on_gpus(buffers),
            mapped_bytes=max(0, mapped - repacked),
            why="; ".join(filter(None, (chosen.why, IN_HUGE_PAGES if copies else ""))),
            repacked=chosen.repack,
        )

    def _stream_in(
        self,
        request: Load,
        chosen: Chosen,
        stages: tuple[Stage, ...],
        experts: Mapping[int, LayerExperts],
        has_head: bool,
        watch: LoadWatch,
    ) -> Shard:
        """Open a shard whose weights are read ahead of what computes, and let go behind it. llama.cpp reads the file once when it opens it."""
        with ExitStack() as stack:
            self._budgets.make_room(chosen.others, sum(chosen.others) + chosen.budget)
            stack.callback(self._budgets.leave, None)  # where it cannot be opened
            model = stack.enter_context(LlamaModel(Path(request.path), repack=False, on_progress=watch.handled))
            ahead = stack.enter_context(ReadAhead(stages, chosen.budget, passes=None, experts=experts))
            on_experts = ahead.experts_chosen if experts else None
            layers = LayerWatch(model.n_layer, ahead.stage_done, model.architecture, on_experts)
            context = self._context(model, request, has_head, layers)
            context.spared_threads = (
                1  # for the one that reads: with as many as cores, each waits for that one at every layer
            )
            stack.pop_all()  # the shard closes them
            self._budgets.join(ahead)
        buffers = Counter(model.buffers) + Counter(context.buffers)
        mapped = sum(size for name, size in buffers.items() if "_Mapped" in name)
        return Shard(
            request=request,
            model=model,
            context=context,
            has_head=has_head,
            memory_bytes=buffers.total() - mapped,
            gpus=Counter(),
            mapped_bytes=0,
            ahead=ahead,
            why=chosen.why,
            repacked=False,
            budgets=self._budgets,
        )

    def _context(
        self, model: LlamaModel, request: Load, has_head: bool, layers: LayerWatch | None = None
    ) -> LlamaContext:
        options = request.options
        return LlamaContext(
            model,
            n_ctx=options.n_ctx,
            n_seq=options.n_seq,
            n_batch=options.n_batch,
            threads=self._threads,
            capture=not has_head,
            watch=layers,
        )


def _on_gpus(buffers: Counter[str]) -> Counter[str]:
    """Returns: bytes on each GPU. `CPU_Mapped`, `CPU_REPACK` and the like are main memory, and so are `CUDA_Host` buffers."""
    found: Counter[str] = Counter()
    for name, size in buffers.items():
        if not name.startswith("CPU") and "_Host" not in name:
            found[name.split()[0]] += size
    return found


def _has_head(path: Path, header: GgufHeader) -> bool:
    """True for the shard that ends with the model's last layer. A GGUF without our metadata is a whole model."""
    end, total = header.get("shardnet.layer_end"), header.get("shardnet.n_layers")
    if end is None or total is None:
        return True
    if not (isinstance(end, int) and isinstance(total, int) and 0 < end <= total):
        raise GgufError(f"{path} says that it ends at layer {end} of {total}: its metadata is damaged")
    return end == total
