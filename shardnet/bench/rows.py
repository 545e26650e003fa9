"""Result rows: medians with their spread, and predicted beside measured."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from shardnet.log import counted

Row = dict[str, Any]


def spread(name: str, values: Sequence[float], digits: int = 2) -> Row:
    """Returns: `name`: the median; `name_min`, `name_max`."""
    return {
        name: round(statistics.median(values), digits),
        f"{name}_min": round(min(values), digits),
        f"{name}_max": round(max(values), digits),
    }


def machine() -> Row:
    """Returns: what a figure must never be read without."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores}


def predicted(name: str, value: float, measured: float, digits: int = 3) -> Row:
    """Returns: the prediction, and how it compares."""
    return {f"predicted_{name}": round(value, digits), "predicted_over_measured": round(value / measured, 3)}


def describe(row: Row) -> str:
    """Returns: a row as a line for people."""
    error = f"{100 * (row['predicted_over_measured'] - 1):+.0f} %"
    where = f"{row['net']:>8}  {counted(row['stages'], 'stage'):<8}"
    match row["bench"]:
        case "decode":
            return (
                f"{where}  {row['tokens_per_s']:8.2f} tokens/s  {row['ms_per_token']:8.2f} ms/token (predicted "
                f"{row['predicted_ms_per_token']:.2f}, {error})  {row['ratio']:.3f} of plain llama.cpp"
            )
        case "streams":
            return (
                f"{where}  {row['streams']:2} streams  {row['tokens_per_s']:8.2f} tokens/s (predicted "
                f"{row['predicted_tokens_per_s']:.2f}, {error})  {row['ratio']:.3f} of plain llama.cpp batched"
            )
        case _:
            return (
                f"{where}  prompt of {row['prompt_tokens']}  {row['first_token_s']:7.3f} s to the first token (predicted "
                f"{row['predicted_first_token_s']:.3f}, {error})  {row['ratio']:.3f} of plain llama.cpp"
            )
