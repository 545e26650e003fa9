"""Which device gets which layers of a shard: pure arithmetic over devices as they tell themselves, or as they are described.

llama.cpp keeps the first layers on the processor and gives the rest, in order, to GPUs; the head counts as one more layer behind the last, and goes
to a GPU before any layer does. The input embedding always stays in main memory. Of a mixture of experts the experts are most of the bytes and little
of the work: where not everything fits, they stay in main memory and the rest of every layer goes to a GPU. Refuses to know llama.cpp and ggml.

Source: `load_tensors` in llama.cpp's src/llama-model.cpp, `LLM_FFN_EXPS_REGEX` in its common/common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shardnet.errors import UsageError
from shardnet.inference.engine.memory import GPU_HEADROOM_BYTES, ShardCost, attention_bytes, bytes_beside_gpus, need_of
from shardnet.log import human_bytes
from shardnet.messages import ShardOptions

CPU = "CPU"
MODES = ("auto", "balanced", "round-robin")
MOST_DIGITS = 12
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


@dataclass(frozen=True, slots=True)
class Space:
    """A GPU as it tells itself: free bytes, and what our shards have there already."""

    name: str
    free_bytes: int
    used_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants.

    Attributes:
        mode: one of `MODES`, or "CPU=4,CUDA0=10,CUDA1=10": layers in order, the head behind the last.
        n_gpu_layers: so many of the last, the head counted; -1: all; "auto": as many as fit.
        caps: device -> most bytes of it.
        gpu_bytes: most bytes of all GPUs together; None: no such cap.
        experts: "ram": kept in main memory, "gpu": never apart from their layer, "auto": in main memory as far as not everything fits.
    """

    mode: str = "auto"
    n_gpu_layers: int | Literal["auto"] = "auto"
    caps: Mapping[str, int] = field(default_factory=dict)
    gpu_bytes: int | None = None
    experts: Literal["auto", "ram", "gpu"] = "auto"


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Where everything goes.

    Attributes:
        devices: of each layer, and of the head as the last entry.
        experts_in_ram: the first so many layers keep their experts in main memory.
        bytes_on: bytes on each GPU, KV cache and compute buffers counted.
        spared_bytes: so much less main memory is needed than without GPUs: what was moved there, and the scores of attention.
    """

    devices: tuple[str, ...]
    experts_in_ram: int
    bytes_on: Mapping[str, int]
    spared_bytes: int = 0

    @property
    def gpus(self) -> tuple[str, ...]:
        """Returns: the GPUs in use, in the order in which llama.cpp is to be given them."""
        return tuple(dict.fromkeys(name for name in self.devices if name != CPU))

    @property
    def n_gpu_layers(self) -> int:
        """Returns: entries that are not on the processor, as llama.cpp counts."""
        return sum(name != CPU for name in self.devices)

    @property
    def tensor_split(self) -> tuple[float, ...]:
        """Returns: entries of each of `gpus`. llama.cpp gives each its share in order, whichever entries these are."""
        return tuple(float(self.devices.count(name)) for name in self.gpus)

    @property
    def overrides(self) -> tuple[tuple[str, str], ...]:
        """Returns: (regular expression of tensors, device) for what does not lie where `tensor_split` puts it."""
        found = []
        if self.experts_in_ram:
            found.append((_layers_pattern(range(self.experts_in_ram)) + EXPERTS, CPU))
        start = len(self.devices) - self.n_gpu_layers
        by_split = [name for name in self.gpus for _ in range(self.devices.count(name))]
        for name in self.gpus:
            moved = [
                layer
                for layer in range(start, len(self.devices) - 1)
                if self.devices[layer] == name != by_split[layer - start]
            ]
            if moved:
                found.append((_layers_pattern(moved) + r"\.", name))
        return tuple(found)

    def sentences(self, cost: ShardCost) -> list[str]:
        """Returns: the plan for people, one sentence for each run of layers, and what is kept apart."""
        told = []
        first, last = 0, len(self.devices) - 1
        for entry in range(1, last + 2):
            if entry > last or self.devices[entry] != self.devices[first]:
                told.append(f"{self.devices[first]}: {_entries(first, entry, last)}")
                first = entry
        if self.experts_in_ram:
            kept = sum(cost.expert_bytes[: self.experts_in_ram])
            told.append(
                f"experts of layers [0, {self.experts_in_ram}) stay in main memory ({human_bytes(kept)}): most of the bytes, little of the work"
            )
        told += [f"{name} takes {human_bytes(size)}" for name, size in self.bytes_on.items()]
        return told


def _entries(first: int, end: int, head: int) -> str:
    layers = f"layers [{first}, {min(end, head)})" if first < head else ""
    return " and ".join(part for part in (layers, "the head" if end > head else "") if part)


def _layers_pattern(layers: Sequence[int]) -> str:
    return rf"blk\.({'|'.join(str(layer) for layer in layers)})"


def plan_devices(cost: ShardCost, options: ShardOptions, gpus: Sequence[Space], wish: Wish) -> DevicePlan:
    """Lay a shard's layers over the processor and these GPUs.

    Raises: UsageError if an explicit map names a device that is not there, or not this many layers.
    """
    sizes = _Sizes(cost, options, gpus, wish)
    if wish.mode not in MODES:
        return sizes.plan(_explicit(wish.mode, len(cost.layer_bytes), [gpu.name for gpu in gpus]), _experts(cost, wish))
    best = sizes.most(0 if wish.experts != "ram" else sizes.n_layers)
    if wish.experts == "auto" and any(cost.expert_bytes) and best.n_gpu_layers <= sizes.n_layers:
        return sizes.with_fewest_experts_in_ram() or max(
            best, sizes.most(sizes.n_layers), key=lambda one: one.n_gpu_layers
        )
    return best


def _experts(cost: ShardCost, wish: Wish) -> int:
    return len(cost.layer_bytes) if wish.experts == "ram" and any(cost.expert_bytes) else 0


class _Sizes:
    """Bytes of each entry, and room on each GPU."""

    def __init__(self, cost: ShardCost, options: ShardOptions, gpus: Sequence[Space], wish: Wish) -> None:
        need = need_of(cost, options)
        self.n_layers = len(cost.layer_bytes)
        self._cost, self._wish = cost, wish
        self._compute = need.compute - bytes_beside_gpus(cost, options)
        self._scores = attention_bytes(options, cost.n_head)
        self._kv_each = -(-need.kv // self.n_layers)
        room = {gpu.name: gpu.free_bytes - GPU_HEADROOM_BYTES for gpu in gpus}
        for gpu in gpus:
            if gpu.name in wish.caps:
                room[gpu.name] = min(room[gpu.name], wish.caps[gpu.name] - gpu.used_bytes)
        self._room = room
        self._left = None if wish.gpu_bytes is None else wish.gpu_bytes - sum(gpu.used_bytes for gpu in gpus)

    def entry(self, index: int, experts_in_ram: int) -> int:
        """Returns: bytes of a layer with its KV cache, or of the head."""
        if index == self.n_layers:
            return self._cost.head_bytes
        kept = self._cost.expert_bytes[index] if index < experts_in_ram and self._cost.expert_bytes else 0
        return self._cost.layer_bytes[index] - kept + self._kv_each

    def most(self, experts_in_ram: int) -> DevicePlan:
        """Returns: as many entries on GPUs as fit, or as were asked for, laid out in the wish's mode."""
        experts_in_ram = experts_in_ram if any(self._cost.expert_bytes) else 0
        everything = self.n_layers + 1
        wanted = self._wish.n_gpu_layers
        if not self._room or wanted == 0:
            return self.plan((CPU,) * everything, 0)
        if wanted != "auto":
            count = everything if wanted < 0 else min(wanted, everything)
            return self.plan(self._layout(count, experts_in_ram) or self._spread(count), experts_in_ram)
        for count in range(everything, 0, -1):
            names = self._layout(count, experts_in_ram)
            if names is not None:
                return self.plan(names, experts_in_ram)
        return self.plan((CPU,) * everything, 0)

    def with_fewest_experts_in_ram(self) -> DevicePlan | None:
        """Returns: everything but the experts of the first layers on GPUs; None if that does not fit, or not everything is wanted there."""
        if not self._room or self._wish.n_gpu_layers != "auto":
            return None
        for kept in range(1, self.n_layers + 1):
            names = self._layout(self.n_layers + 1, kept)
            if names is not None:
                return self.plan(names, kept)
        return None

    def plan(self, names: Sequence[str], experts_in_ram: int) -> DevicePlan:
        """Returns: the plan with these devices."""
        used = self._bytes_on(names, experts_in_ram)
        moved = sum(used.values()) - len(used) * self._compute
        return DevicePlan(tuple(names), experts_in_ram, used, moved + self._scores if used else 0)

    def _bytes_on(self, names: Sequence[str], experts_in_ram: int) -> dict[str, int]:
        used = {name: self._compute for name in dict.fromkeys(names) if name != CPU}
        for index, name in enumerate(names):
            if name != CPU:
                used[name] += self.entry(index, experts_in_ram)
        return used

    def _fits(self, names: Sequence[str], experts_in_ram: int) -> bool:
        used = self._bytes_on(names, experts_in_ram)
        return all(used[name] <= self._room[name] for name in used) and (
            self._left is None or sum(used.values()) <= self._left
        )

    def _layout(self, count: int, experts_in_ram: int) -> tuple[str, ...] | None:
        """Returns: devices with the last `count` entries on GPUs; None if they do not fit so."""
        before = (CPU,) * (self.n_layers + 1 - count)
        ways: dict[str, tuple[Callable[[int, int], list[str]], ...]] = {
            "auto": (self._filled,),
            "balanced": (self._balanced, self._filled),
            "round-robin": (self._in_turns,),
        }
        for way in ways[self._wish.mode]:
            names = (*before, *way(count, experts_in_ram))
            if len(names) == self.n_layers + 1 and self._fits(names, experts_in_ram):
                return names
        return None

    def _filled(self, count: int, experts_in_ram: int) -> list[str]:
        """As few devices as will do: the roomiest takes the end, the next what comes before it."""
        names: list[str] = []
        index = self.n_layers
        for name in sorted(self._room, key=lambda one: -self._room[one]):
            left = self._room[name] - self._compute
            while len(names) < count and self.entry(index, experts_in_ram) <= left:
                left -= self.entry(index, experts_in_ram)
                names.append(name)
                index -= 1
        return names[::-1]

    def _balanced(self, count: int, experts_in_ram: int) -> list[str]:
        """Each device's share of the bytes is its share of the free memory."""
        rooms = {name: max(0, room - self._compute) for name, room in self._room.items()}
        indices = range(self.n_layers + 1 - count, self.n_layers + 1)
        total, room = sum(self.entry(index, experts_in_ram) for index in indices), sum(rooms.values())
        ends, passed = [], 0
        for size in rooms.values():
            passed += size
            ends.append(passed * total / max(1, room))
        names, done, at = [], 0, 0
        order = list(rooms)
        for index in indices:
            size = self.entry(index, experts_in_ram)
            while at + 1 < len(order) and done + size / 2 > ends[at]:
                at += 1
            names.append(order[at])
            done += size
        return names

    def _in_turns(self, count: int, _experts_in_ram: int) -> list[str]:
        """Not for speed: hidden states change devices at every layer, and KV caches lie as if each GPU had its layers in one run."""
        order = list(self._room)
        names = [order[index % len(order)] for index in range(count - 1)]
        return [*names, order[min(count, len(order)) - 1]]  # llama.cpp gives the head to the last GPU

    def _spread(self, count: int) -> tuple[str, ...]:
        """Entries that the user insists on although they do not seem to fit: in proportion, or in turns."""
        way = self._in_turns if self._wish.mode == "round-robin" else self._balanced
        return ((CPU,) * (self.n_layers + 1 - count)) + tuple(way(count, 0))


def check_map(text: str) -> list[tuple[str, int]]:
    """Returns: (device, layers) of an explicit map. Raises: ValueError if it is none."""
    found: list[tuple[str, int]] = []
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if not (name and number.isascii() and number.isdecimal() and len(number) < MOST_DIGITS):
            raise ValueError(f"{part.strip()!r} is neither {', '.join(MODES)} nor NAME=LAYERS, as in CPU=4,CUDA0=10")
        if name == CPU and any(count for _, count in found):
            raise ValueError("the processor takes the first layers or none: write CPU=... first")
        found.append((name, int(number)))
    return found


def caps_of(texts: Sequence[str]) -> dict[str, int]:
    """Returns: device -> bytes, of `NAME=BYTES`. Raises: ValueError if one is not like that."""
    caps = {}
    for text in texts:
        name, _, number = text.strip().partition("=")
        if not (name and number.isascii() and number.replace("_", "").isdecimal() and len(number) < 2 * MOST_DIGITS):
            raise ValueError(f"{text!r} is not NAME=BYTES, as in CUDA0=8_000_000_000")
        caps[name] = int(number)
    return caps


def _explicit(text: str, n_layers: int, gpus: Sequence[str]) -> tuple[str, ...]:
    names: list[str] = []
    for name, number in check_map(text):
        if name != CPU and name not in gpus:
            raise UsageError(
                f"inference.device_map names the device {name!r}: there are {', '.join((CPU, *gpus))} (`shardnet devices` shows them)"
            )
        names += [name] * min(number, n_layers + 1)
    if len(names) != n_layers:
        raise UsageError(f"inference.device_map places {len(names)} layers, and the shard has {n_layers}")
    return (*names, names[-1])  # llama.cpp puts the head on a GPU before any layer
