"""What quantising lost, for people: sizes, the whole model's figures, the tensors that lost most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shardnet.log import counted, human_bytes

WORST = 3


def loss_lines(losses: dict[str, Any], perplexity: dict[str, Any] | None) -> Iterator[str]:
    """Yield lines.

    Args:
        losses: `LossReport.facts`.
        perplexity: `before` and `after`, each with value, deviation, n_tokens.
    """
    yield (
        f"quantised: {human_bytes(losses['bytes_before'])} -> {human_bytes(losses['bytes_after'])} (ratio {losses['ratio']:.2f}), "
        f"cosine {losses['cosine']:.6f}, RMSE {losses['rmse']:.3g} over {counted(len(losses['tensors']), 'tensor')}"
    )
    for tensor in sorted(losses["tensors"], key=lambda one: one["cosine"])[:WORST]:
        kinds = f"{tensor['from']} -> {tensor['to']}"
        yield f"  lost most: {tensor['name']:<28} {kinds:<14} cosine {tensor['cosine']:.6f}  RMSE {tensor['rmse']:.3g}"
    weighed = sum(one["importance"] for one in losses["tensors"])
    if weighed:
        yield f"  the importance matrix knew {weighed} of these tensors"
    if losses["unmeasured"]:
        yield f"  {losses['unmeasured']} more tensors were written before this split was broken off, and are not in these figures"
    again = sorted({one["from"] for one in losses["tensors"]} - {"F32", "F16", "BF16"})
    if again:
        yield f"  made from weights that were quantised already ({', '.join(again)}): measured against those, not against the original"
    if perplexity is not None:
        before, after = perplexity["before"], perplexity["after"]
        yield (
            f"  perplexity {before['value']:.4f} ± {before['deviation']:.4f} -> {after['value']:.4f} ± {after['deviation']:.4f} "
            f"over {after['n_tokens']} tokens"
        )
