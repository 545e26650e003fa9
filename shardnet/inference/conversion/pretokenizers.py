r"""How a byte-level tokenizer.json cuts text into words before merging, and which of llama.cpp's pre-tokenizers cuts alike.

Each step of `pre_tokenizer` is a regular expression (`Digits` is `\p{N}`, `ByteLevel` GPT-2's); the list of them is what decides, together with
`ignore_merges`, which llama.cpp ties to the name. A list that is not known here is refused: other words give other tokens, and the model nonsense.

Source: llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_bpe`; tokenizers, src/pre_tokenizers/*.rs.
"""

from __future__ import annotations

from typing import Any

from shardnet.errors import CheckpointError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN2 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ONE_OTHER = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = (
    rf"{_ONE_OTHER}[{_UPPER}]*[{_LOWER}]+|{_ONE_OTHER}[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
GPT4O = (
    rf"{_ONE_OTHER}[{_UPPER}]*[{_LOWER}]+{_ENGLISH}?|{_ONE_OTHER}[{_UPPER}]+[{_LOWER}]*{_ENGLISH}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
DIGIT = r"\p{N}"

KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGIT, GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((TEKKEN,), True): "tekken",
    ((GPT4O,), False): "gpt-4o",
}
"""(expressions in order, `ignore_merges`) -> value of `tokenizer.ggml.pre`."""

WHOLE = frozenset({GPT2, LLAMA3, QWEN2, TEKKEN, GPT4O})
"""Expressions that match every character, so that what lies between matches need not be asked for."""
LONGEST_SHOWN = 120


def pre_tokenizer_name(steps: list[dict[str, Any]], where: str, *, ignores_merges: bool) -> str:
    """Returns: llama.cpp's name for the way in which the steps of a byte-level tokenizer.json cut text.

    Raises: CheckpointError if llama.cpp has none, or adds or leaves out something: `where` is named.
    """
    expressions = tuple(found for step in steps if (found := _expression(step, where)) is not None)
    name = KNOWN.get((expressions, ignores_merges))
    if name is None:
        shown = " then ".join(repr(expression) for expression in expressions)[:LONGEST_SHOWN]
        kind = " with ignore_merges" if ignores_merges else ""
        raise CheckpointError(
            f"{where} cuts text by {shown or 'nothing'}{kind}, which is none of the ways that are known "
            f"({', '.join(sorted(KNOWN.values()))}): the model would read other tokens than it was trained on"
        )
    return name


def _expression(step: dict[str, Any], where: str) -> str | None:
    """Returns: what a step cuts by; None if it only spells bytes as letters. Raises: CheckpointError if it does something else."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": True}:
            raise CheckpointError(
                f"{where} puts a space before every text, which llama.cpp does not for byte-level tokens"
            )
        case {"type": "ByteLevel", "use_regex": False}:
            return None
        case {"type": "ByteLevel"}:
            return GPT2
        case {"type": "Digits", "individual_digits": True}:
            return DIGIT
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False}:
            return expression
        case {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Removed", "invert": True} if (
            expression in WHOLE
        ):
            return expression
        case _:
            raise CheckpointError(
                f"{where} cuts text by a step {step.get('type')!r} of a kind that is not taken: {str(step)[:LONGEST_SHOWN]}"
            )
