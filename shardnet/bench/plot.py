"""Charts of result rows, with matplotlib (the extra `plot`). Knows nothing of how they were measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shardnet.bench.netem import NETS
from shardnet.bench.rows import Row
from shardnet.errors import ShardnetError, UsageError
from shardnet.log import counted

SUFFIXES = (".svg", ".png")
PANEL_INCHES = (7.0, 3.6)
INCHES_PER_BAR = 0.75


def check_target(path: Path) -> None:
    """Find out before an hour of measuring. Raises: UsageError if a chart could not be drawn there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: the file's name must end in {' or '.join(SUFFIXES)}", param="plot")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.absolute().parent}", param="plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot needs matplotlib, which is not installed: pip install 'shardnet[plot]' (from a checkout: pip install -e '.[plot]')",
            param="plot",
        )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write one chart for each benchmark and model among the rows, one under the other.

    Raises: UsageError if there is nothing to draw, or matplotlib is missing; ShardnetError if the file cannot be written.
    """
    check_target(path)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["bench"] in PANELS:
            groups.setdefault((row["bench"], str(row.get("model", ""))), []).append(row)
    if not groups:
        raise UsageError("there are no results to draw")
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    width = max(width, INCHES_PER_BAR * max(len(own) for own in groups.values()))
    figure = Figure(figsize=(width, height * len(groups)), layout="constrained")
    panels: list[Any] = list(figure.subplots(len(groups), 1, squeeze=False)[:, 0])
    for axes, ((bench, model), own) in zip(panels, groups.items(), strict=True):
        PANELS[bench](axes, own)
        axes.set_title(f"{TITLES[bench]}: {model}", fontsize=10)
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    try:
        figure.savefig(path)
    except OSError as error:
        raise ShardnetError(f"cannot write {path}: {error.strerror or error}") from error


def _order(net: str) -> int:
    return list(NETS).index(net) if net in NETS else len(NETS)


def _bars(
    axes: Any, rows: Sequence[Row], value: str, unit: str, plain: Callable[[Row], float], label: Callable[[Row], str]
) -> None:
    """A bar with its spread for each row, the prediction as a mark, plain llama.cpp as a line at its height."""
    places = range(len(rows))
    measured = [row[value] for row in rows]
    below = [row[value] - row[f"{value}_min"] for row in rows] if f"{value}_min" in rows[0] else None
    above = [row[f"{value}_max"] - row[value] for row in rows] if below is not None else None
    axes.bar(
        places,
        measured,
        width=0.6,
        color="#4c78a8",
        label="shardnet, measured",
        yerr=None if below is None else [below, above],
        capsize=3,
    )
    axes.scatter(
        places,
        [row[f"predicted_{value}"] for row in rows],
        marker="D",
        s=22,
        color="#f58518",
        zorder=3,
        label="predicted",
    )
    for place, row in zip(places, rows, strict=True):
        axes.hlines(
            plain(row),
            place - 0.4,
            place + 0.4,
            color="#54a24b",
            linestyle="--",
            label="plain llama.cpp" if place == 0 else None,
        )
    axes.set_xticks(list(places), [label(row) for row in rows], fontsize=7)
    axes.set_ylabel(unit, fontsize=9)


def _where(row: Row) -> str:
    return f"{row.get('net', '')}\n{counted(row['stages'], 'stage')}"


def _decode(axes: Any, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: (_order(row["net"]), row["stages"]))
    _bars(axes, rows, "ms_per_token", "ms per token", lambda row: 1e3 / row["plain_tokens_per_s"], _where)
    if max(row["ms_per_token"] for row in rows) > 20 * min(row["ms_per_token"] for row in rows):
        axes.set_yscale("log")


def _streams(axes: Any, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: (_order(row["net"]), row["stages"], row["streams"]))
    _bars(
        axes,
        rows,
        "tokens_per_s",
        "tokens/s together",
        lambda row: float(row["plain_tokens_per_s"]),
        lambda row: f"{_where(row)}\n{row['streams']} streams",
    )


def _prefill(axes: Any, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: (_order(row["net"]), row["prompt_tokens"], row["stages"]))
    _bars(
        axes,
        rows,
        "first_token_s",
        "seconds to the first token",
        lambda row: float(row["plain_first_token_s"]),
        lambda row: f"{_where(row)}\n{row['prompt_tokens']} tokens",
    )


PANELS: dict[str, Callable[[Any, list[Row]], None]] = {"decode": _decode, "streams": _streams, "prefill": _prefill}
TITLES = {"decode": "Decode, one stream", "streams": "Decode, streams at once", "prefill": "Long prompt"}
