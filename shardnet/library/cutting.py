"""One split, from what its caller asked for to a model in a cache. `split_model` and `shardnet split` are both this, and differ in what they show.

Refuses to know who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet.errors import UsageError
from shardnet.inference.opening import opened, traffic_of
from shardnet.inference.proof.steps import Method
from shardnet.inference.proof.verify import OnPlan, fault_of
from shardnet.inference.quantising.model import quantised_name
from shardnet.inference.splitting.cuts import parse_ids, parse_size
from shardnet.inference.splitting.plan import BALANCES, Balance, CutRequest, model_name, plan_model
from shardnet.preparing import Bar, Prepared, prepare

if TYPE_CHECKING:
    from shardnet.inference.remote.opening import Traffic


@dataclass(frozen=True, slots=True)
class Quantising:
    """What weights become on the way: `kind` as `split --quantize` takes it; None: they stay what they are."""

    kind: str | None = None
    imatrix: Path | None = None
    allow_requantize: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """A model that was split.

    Attributes:
        traffic: of one that came from an address; else None.
        fault: one sentence that says what differs from the unsplit model; "" if nothing is known to.
    """

    prepared: Prepared
    traffic: Traffic | None
    fault: str


def cut_request(
    shards: int | None,
    max_shard_bytes: int | str | None,
    cuts: Sequence[int] | None,
    balance: Balance | None = None,
    spelled: Callable[[str], str] = str,
) -> CutRequest:
    """Returns: where to cut.

    Args:
        balance: of a number of shards; None: the usual one.
        spelled: how the caller's people write the name of an argument.

    Raises: UsageError if where to cut is said more than once, the size is none, or there is nothing to balance.
    """
    chosen = {"shards": shards, "max_shard_bytes": max_shard_bytes, "cuts": cuts}
    given = [spelled(key) for key, value in chosen.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one of them")
    if balance is not None:
        if balance not in BALANCES:
            raise UsageError(f"{spelled('balance')} is {' or '.join(BALANCES)}, not {balance!r}")
        if given and shards is None:
            raise UsageError(
                f"{spelled('balance')} is about a number of shards: {given[0]} says where to cut by itself"
            )
    size = parse_size(max_shard_bytes) if isinstance(max_shard_bytes, str) else max_shard_bytes
    return CutRequest(shards, size, None if cuts is None else tuple(cuts), balance or CutRequest.balance)


def cut_model(
    source: str | Path,
    request: CutRequest,
    cache: Path,
    home: Path,
    *,
    quantising: Quantising,
    name: str | None,
    only: Sequence[str] | None,
    prove: bool,
    method: Method | None,
    bar: Bar,
    on_plan: OnPlan = lambda _plan: None,
    on_whole: Callable[[Path], None] | None = None,
) -> Cut:
    """Open a model, quantise it where asked for, and `prepare` it in a cache.

    Args:
        name: what people call it; None: its own name, with the type that it was quantised to.
        only: shards as `--only` names them; None: all.

    Raises: as `open_model`, `plan_model` and `prepare`.
    """
    kind, imatrix, again = quantising.kind, quantising.imatrix, quantising.allow_requantize
    with opened(source, quantize=kind, imatrix=imatrix, allow_requantize=again) as header:
        if kind is not None and name is None:
            name = quantised_name(model_name(header, None), kind)
        plan = plan_model(header, request, name)
        prepared = prepare(
            plan,
            cache,
            home,
            prove=prove,
            bar=bar,
            method=method,
            on_plan=on_plan,
            only=None if only is None else parse_ids(only, len(plan.shards)),
            on_whole=on_whole,
        )
        traffic = traffic_of(header)
    fault = fault_of(prepared.manifest.content, prepared.manifest.certificate)
    return Cut(prepared, traffic, fault)
